"""From the arguments to a plan: the scheme of every layer, averages spent, groups chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from torch import nn

from octavo.data import Batches
from octavo.deciding import patterns
from octavo.deciding.sensitivity import measure_sensitivity
from octavo.errors import NothingQuantizedError
from octavo.graph.capture import Capture
from octavo.nn.registry import registered_class
from octavo.numerics.scheme import Activations, Scheme, default_group_size
from octavo.planning.plan import Plan, plan

__all__ = ["Decision", "decide"]


@dataclass(frozen=True)
class Decision:
    """How every layer is stored.

    Attributes:
        plan: what was decided.
        notes: messages on how it was chosen.
        replan: the plan in which some layers have a range of each row: it is given their names and
            why.
    """

    plan: Plan
    notes: tuple[str, ...]
    replan: Callable[[Mapping[str, str]], Plan]


def decide(
    model: nn.Module,
    found: Capture,
    *,
    widths: Mapping[Any, int] | float,
    activations: Activations = "dynamic",
    activation_bits: int | Mapping[Any, int] = 8,
    grid: str = "linear",
    group_size: SupportsIndex | str | None = None,
    symmetric: bool = True,
    exclude: tuple[object, ...] | None = None,
    include: tuple[object, ...] | None = None,
    strict: bool = True,
    batches: Batches | None = None,
    training: bool = False,
    normed: frozenset[str] = frozenset(),
    progress: bool = True,
) -> Decision:
    """The plan of a captured model for the arguments of `octavo.quantize`, checked already.

    Args:
        model: the folded model.
        found: its capture; regions need one made with an example.
        widths: patterns to bits, or an average to be spent by sensitivities.
        activations: how those of all layers are stored.
        activation_bits: of static ones, or by pattern.
        batches: for sensitivities.
        training: for a trainee.
        normed: layers whose scale a BatchNorm will change after training.
        grid: as for `octavo.quantize`, like all that follow.
        group_size: inputs that share a scale; "tensor": all of a weight.
        symmetric: whether weights have no zero points.
        exclude: patterns to leave out.
        include: patterns of the only layers to quantize; None for all.
        strict: whether what matches nothing is an error.
        progress: whether to show bars.

    Raises:
        ValueError: a pattern that matches nothing, or tied layers of different widths.
        NothingQuantizedError: no layer is left.
    """
    asked = {"*": 8} if isinstance(widths, float) else widths
    schemes, reasons, notes = _schemes(
        asked, exclude, include, found=found, model=model, grid=grid, strict=strict
    )
    if isinstance(widths, float):
        schemes, spent = _spent(widths, schemes, model, batches, progress)
        notes.append(spent)
    if isinstance(activation_bits, Mapping):
        activation_bits = patterns.activation_widths(activation_bits, found.sites, model)
    if training:
        for site in found.sites:
            module = model.get_submodule(site.name)
            facts = registered_class(module)
            reason = facts.reason_in_training(module) if facts else ""
            if reason:
                schemes[site.name] = None
                reasons[site.name] = reason
    groups = {} if group_size else _default_groups(found, schemes, normed)
    if group_size == "tensor":
        schemes = {name: s and replace(s, per_tensor=True) for name, s in schemes.items()}
    elif group_size:
        schemes, ungrouped = _with_groups(found, schemes, int(group_size), normed)
        notes += ungrouped
    if not symmetric:
        schemes, without_zero_points = _with_zero_points(found, schemes, normed)
        notes += without_zero_points
    widths_read = activation_bits

    def replan(by_rows: Mapping[str, str]) -> Plan:
        return plan(
            found, schemes, activations, widths_read,
            reasons=reasons, groups=groups, by_rows=by_rows,
        )  # fmt: skip

    return Decision(replan({}), tuple(notes), replan)


def _schemes(
    bits: Mapping[Any, int],
    exclude: tuple[object, ...] | None,
    include: tuple[object, ...] | None,
    *,
    found: Capture,
    model: nn.Module,
    grid: str,
    strict: bool,
) -> tuple[dict[str, Scheme | None], dict[str, str], list[str]]:
    """Scheme of each site (None: float), reasons for float, and what matched nothing."""
    widths, reasons, unmatched = patterns.resolve(bits, exclude or (), include, found.sites, model)
    if unmatched and strict:
        raise ValueError(unmatched[0])
    chosen = [site for site in found.sites if site.name in widths and not site.reason]
    if not chosen:
        problem = _nothing(found)
        if strict:
            raise NothingQuantizedError(problem)
        unmatched.append(problem)
    for site in chosen:
        for other in site.tied:
            if widths.get(other, widths[site.name]) != widths[site.name]:
                raise ValueError(
                    f"quantize: layers {site.name!r} and {other!r} share one weight "
                    f"and must have the same bits, got {widths[site.name]} and {widths[other]}. "
                    "Give both the same, or exclude one."
                )
    schemes = dict.fromkeys((site.name for site in found.sites), None) | {
        site.name: Scheme(widths[site.name], grid) for site in chosen
    }
    return schemes, reasons, unmatched


def _spent(
    average: float,
    schemes: Mapping[str, Scheme | None],
    model: nn.Module,
    batches: Batches | None,
    progress: bool,
) -> tuple[dict[str, Scheme | None], str]:
    """The schemes with widths that together are ``average`` bits a weight, and a note."""
    chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    grid = next(iter(chosen.values()), Scheme()).grid
    found = measure_sensitivity(model, list(chosen), batches, grid, progress)
    widths = found.allocate(average)
    total = sum(found.sizes.values())
    spent = sum(found.sizes[name] * bits for name, bits in widths.items()) / max(total, 1)
    counts = {bits: list(widths.values()).count(bits) for bits in sorted(set(widths.values()))}
    layers = ", ".join(f"{count} of {bits} bits" for bits, count in counts.items())
    new = {name: replace(scheme, bits=widths[name]) for name, scheme in chosen.items()}
    return {**schemes, **new}, f"average of {average} bits: {spent:.3f} spent, layers: {layers}"


def _default_groups(
    found: Capture, schemes: Mapping[str, Scheme | None], normed: frozenset[str]
) -> dict[str, int]:
    """Inputs that share a scale in layers that will run alone."""
    return {
        site.name: default_group_size(scheme.bits, site.features)
        for site in found.sites
        if (scheme := schemes.get(site.name)) and site.features and site.name not in normed
    }


def _with_groups(
    found: Capture, schemes: Mapping[str, Scheme | None], size: int, normed: frozenset[str]
) -> tuple[dict[str, Scheme | None], list[str]]:
    """The schemes with groups as requested, and a note on layers that cannot have them."""
    grouped, without, behind = dict(schemes), list[str](), list[str]()
    for site in found.sites:
        scheme = schemes.get(site.name)
        if scheme is None or site.reason:
            continue
        if site.name in normed and site.features:
            behind.append(repr(site.name))
        elif site.features:
            grouped[site.name] = replace(scheme, group_size=size)
        else:
            without.append(repr(site.name))
    kinds = {"convolutions": without, "layers before a trained BatchNorm": behind}
    notes = [
        f"{kind} keep one scale for each output channel: {_first_few(names)}"
        for kind, names in kinds.items()
        if names
    ]
    return grouped, notes


def _with_zero_points(
    found: Capture, schemes: Mapping[str, Scheme | None], normed: frozenset[str]
) -> tuple[dict[str, Scheme | None], list[str]]:
    """The schemes with zero points, and a note on layers that cannot have them."""
    affine, without = dict(schemes), list[str]()
    for site in found.sites:
        scheme = schemes.get(site.name)
        if scheme is None or site.reason:
            continue
        if site.features and scheme.bits < 8 and site.name not in normed:
            affine[site.name] = replace(scheme, symmetric=False)
        else:
            without.append(repr(site.name))
    if not without:
        return affine, []
    names = _first_few(without)
    which = "convolutions, layers of 8 bits and layers before a trained BatchNorm"
    return affine, [f"{which} keep symmetric weights: {names}"]


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _nothing(found: Capture) -> str:
    eligible = [repr(site.name) for site in found.sites if not site.reason]
    if eligible:
        more = ", ..." if len(eligible) > 8 else ""
        return (
            f"quantize: at least one layer must be left to quantize, got none of {len(eligible)}. "
            f"Layers that could be: {', '.join(eligible[:8])}{more}."
        )
    rows = [f"{site.name or '(model)'}: {site.reason}" for site in found.sites[:8]]
    types = "; ".join(rows) if rows else "no module with parameters"
    return (
        "quantize: the model must hold a layer that octavo can quantize "
        f"(Linear, Conv1d, Conv2d, Embedding), got none ({types}). "
        "See the reasons, or quantize a part of the model that holds such layers."
    )
