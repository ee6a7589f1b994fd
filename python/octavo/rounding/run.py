"""Rounds all layers of a plan with one method of the table in this package."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from tqdm.auto import tqdm

from octavo.data import Batches
from octavo.graph.keys import RangeKey
from octavo.interrupts import check
from octavo.nn.kept_state import state_kept
from octavo.nn.registry import canonical_weight, looks_up
from octavo.numerics.codes import Codes
from octavo.numerics.scheme import QParams
from octavo.planning.plan import FlowPlan, Plan
from octavo.rounding.blocks import apply_layer, channel_dimension
from octavo.rounding.lockstep import Lockstep, Pause
from octavo.rounding.method import Method
from octavo.rounding.methods.nearest import nearest_of_layer
from octavo.rounding.methods.squant import squant
from octavo.rounding.tune import tune

__all__ = ["Rounded", "choose", "round_model", "rounded_plainly"]

# Weights of an output channel beyond which 6 bits and more are rounded plainly: what second moments
# cost grows with the cube. All layers of MobileNets and of the small EfficientNets lie below.
_MANY = 1536


@dataclass(frozen=True)
class Rounded:
    """What `round_model` finds.

    Attributes:
        codes: of every layer with a scheme.
        qparams: ranges, where the method learned better ones than those given.
        notes: messages for the user.
    """

    codes: dict[str, Codes]
    qparams: Mapping[RangeKey, QParams]
    notes: tuple[str, ...] = ()


def choose(
    widths: Iterable[int], has_data: bool, effort: str, depthwise: bool = False
) -> tuple[str, str]:
    """Name of the rounding method, and the reason in words.

    From 6 bits on plain rounding loses next to nothing, except in networks with depthwise
    convolutions: held-out training images, MobileNetV2 probe without data, 77.8 % by "squant" and
    58.9 % plainly at 6 bits, 87.3 % and 86.3 % at 8 bits. At fewer bits plain rounding loses
    accuracy, and what helps depends on whether there is data, and on the effort.

    Args:
        widths: bits of the layers; the smallest counts.
        has_data: whether there is data.
        effort: "fast", "balanced" or "best".
        depthwise: whether the network has depthwise convolutions.
    """
    smallest = min(widths, default=8)
    if smallest >= 6 and depthwise and effort != "fast":
        return ("gptq" if has_data else "squant"), "a network with depthwise convolutions"
    if smallest >= 6:
        return "nearest", f"{smallest} bits and more"
    what = f"{smallest} bits, {'data' if has_data else 'no data'}, effort {effort!r}"
    if effort == "fast":
        return "nearest", what
    if not has_data:
        return "squant", what
    return ("qdrop" if effort == "best" else "gptq"), what


def rounded_plainly(model: nn.Module, plan: Plan) -> frozenset[str]:
    """Layers that plain rounding is good enough for where "gptq" is chosen from 6 bits on.

    Errors of so many weights average out, and second moments of so many inputs take minutes.
    """
    schemes = {site.name: site.scheme for site in plan.sites if site.scheme is not None}
    if min((scheme.bits for scheme in schemes.values()), default=8) < 6:
        return frozenset()
    return frozenset(
        name for name in schemes if canonical_weight(model.get_submodule(name))[:1].numel() > _MANY
    )


def round_model(
    model: nn.Module,
    plan: Plan,
    method: Method,
    *,
    qparams: Mapping[RangeKey, QParams] | None = None,
    data: object = None,
    flows: Sequence[FlowPlan] = (),
    plainly: Collection[str] = (),
    progress: bool = True,
) -> Rounded:
    """Codes of every layer with a scheme.

    Args:
        model: the float model of the plan, folded. It comes back as it was.
        plan: what is stored in integers.
        method: row of `octavo.rounding.METHODS`.
        qparams: ranges of activations, by the keys of `octavo.prepare.calibrate`.
        data: batches, for methods that need them.
        flows: captured modules; those of the plan where it has any.
        plainly: layers that a method which needs data, layer by layer, rounds to nearest; their
            biases fit the data too.
        progress: whether to show a bar on stderr.
    """
    sites = [site for site in plan.sites if site.scheme is not None]
    label = f"octavo: rounding ({method.name})"
    bar = tqdm(total=len(sites), desc=label, unit="layer", disable=not progress, leave=False)
    with bar, state_kept(model), torch.inference_mode(False), torch.no_grad():
        if method.from_weight is not None:
            codes = {}
            for site in sites:
                assert site.scheme is not None
                check()
                module = model.get_submodule(site.name)
                weight = canonical_weight(module)
                codes[site.name] = method.from_weight(module, weight, site.scheme)
                bar.update()
            _check_finite(codes)
            return Rounded(codes, qparams or {})
        assert method.from_data is not None
        batches = data if isinstance(data, Batches) else Batches(data)
        runs = Lockstep(
            model,
            plan,
            batches,
            qparams=qparams or {},
            flows=plan.flows or flows,
            blockwise=method.blockwise,
        )
        for site in sites:  # A look-up table has no inputs to learn from.
            module = model.get_submodule(site.name)
            if site.scheme is not None and looks_up(module):
                weight = runs.weights[site.name]
                runs.codes[site.name] = nearest_of_layer(module, weight, site.scheme)
                bar.update()
        for pause in runs:
            if set(pause.layers) <= set(plainly):
                runs.codes |= _nearest(runs, pause)
            else:
                runs.codes |= method.from_data(runs, pause)
            bar.update(len(pause.layers))
        # Layers that no batch reached have nothing to learn from but their weights.
        missing = [site for site in sites if site.name not in runs.codes]
        for site in missing:
            assert site.scheme is not None
            module = model.get_submodule(site.name)
            runs.codes[site.name] = squant(module, canonical_weight(module), site.scheme)
    _check_finite(runs.codes)
    notes = []
    if runs.samples < runs.given:
        notes.append(f"rounding read {runs.samples} of {runs.given} samples, as memory allows")
    if missing:
        notes.append(f"rounded without data, which never reached them: {_names(missing)}")
    codes = runs.codes
    # Steps of few bits have been learned with the scales of their blocks and would no longer fit.
    if method.end_to_end and all(p.bits >= 8 for p in runs.qparams.values()):
        codes, note = tune(model, codes, batches, progress)
        notes += [note] if note else []
    return Rounded(codes, runs.qparams, tuple(notes))


def _check_finite(codes: Mapping[str, Codes]) -> None:
    for name, code in codes.items():
        finite = bool(code.scale.isfinite().all())
        if not finite or (code.bias is not None and not bool(code.bias.isfinite().all())):
            largest = float(code.scale.abs().max())
            raise ValueError(
                f"quantize: layer {name!r}: weights whose scales and mean errors "
                f"are finite in float32 expected, got scales up to {largest:.3g}. "
                "Divide the weights, or exclude the layer."
            )


def _nearest(runs: Lockstep, pause: Pause) -> dict[str, Codes]:
    """Nearest codes of the layer of a pause, with the bias that takes its mean error away."""
    (name,) = pause.layers
    module, scheme = runs.model.get_submodule(name), runs.sites[name].scheme
    assert scheme is not None
    codes = nearest_of_layer(module, runs.weights[name], scheme)
    total = torch.zeros(len(codes.codes), dtype=torch.float64)
    count = 0
    for x, wanted in zip(pause.inputs, pause.targets, strict=True):
        y = apply_layer(module, x.float(), codes.dequantize(), codes.bias)
        rows = (wanted - y).movedim(channel_dimension(y, codes), 0).flatten(1)
        total += rows.sum(1, dtype=torch.float64)
        count += rows.shape[1]
    shift = total / max(count, 1)
    bias = shift if codes.bias is None else codes.bias.double() + shift
    return {name: replace(codes, bias=bias.float())}


def _names(sites: Sequence[object]) -> str:
    names = [repr(getattr(site, "name", "")) for site in sites]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
