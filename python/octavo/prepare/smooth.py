"""Outliers of activations moved into weights: from a normalisation to the linear layers behind it.

Xiao et al., "SmoothQuant" (2023), equation 4: y = (x / s) (s W) with s_c = max|x_c|^a /
max|W_c|^(1-a) for each channel c; the normalisation's gain and shift take the division, so the
network computes the same function. Where activations stay float, the same search spreads the error
of weights (Lin et al., "AWQ", 2023). Changes the model it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.data import Batches
from octavo.graph.flow import Flow, refs
from octavo.nn.kept_state import state_kept
from octavo.nn.linear import QLinear
from octavo.nn.registry import canonical_weight, quantized_class
from octavo.planning.plan import Plan, SitePlan

__all__ = ["Smoothed", "smooth"]

_SAMPLES = 128  # Typical magnitudes are wanted, not those of the rarest sample.
_POWERS = (0.25, 0.5, 0.75)
_GAIN = 0.9  # Share of the noise without rescaling that must not be exceeded.
_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Smoothed:
    """The layers whose channels were rescaled.

    Attributes:
        pairs: (normalisation, linear layers behind it).
    """

    pairs: tuple[tuple[str, tuple[str, ...]], ...]

    def __str__(self) -> str:
        lines = [f"{norm} -> {', '.join(layers)}" for norm, layers in self.pairs]
        return "\n".join(lines) or "nothing to smooth"


class _Seen:
    """What a normalisation gives: per channel the largest magnitude and the sum of squares.

    Attributes:
        strangers: whether a layer behind it was ever given something else.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.largest: Tensor | None = None
        self.squares = torch.zeros((), dtype=torch.float64)
        self.strangers = False
        self._latest: Tensor | None = None

    def reads(self, _module: nn.Module, args: tuple[object, ...]) -> None:
        """A forward pre-hook of the layers behind."""
        self.strangers |= len(args) != 1 or args[0] is not self._latest

    def gives(self, _module: nn.Module, _args: object, x: Tensor) -> None:
        """A forward hook of the normalisation: takes in values [..., C]."""
        self._latest = x
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(rows):
            return
        largest = rows.abs().amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.squares = self.squares + rows.square().sum(0, dtype=torch.float64)
        self.rows += len(rows)


def smooth(
    model: nn.Module,
    plan: Plan,
    flows: Iterable[Flow],
    data: object,
    read_elsewhere: frozenset[str] = frozenset(),
) -> Smoothed:
    """Rescales the channels between normalisations and the linear layers that alone read them.

    Of the powers a in 0.25, 0.5, 0.75 the one that minimises the noise expected in the results,
    step_x^2 |W|^2 + sum_o step_o^2 E[x^2]; nothing changes where none is a tenth better than doing
    nothing. Layers with hooks are not changed.

    Args:
        model: the float model of the plan, folded; its parameters are replaced.
        plan: what is stored in integers.
        flows: captured modules.
        data: the batches.
        read_elsewhere: tensors that must stay as they are (`octavo.graph.capture.Capture`).
    """
    sites = {site.name: site for site in plan.sites}
    fixed = {name.rpartition(".")[0] for name in read_elsewhere}
    pairs = {
        norm: layers
        for norm, layers in _pairs(model, sites, flows).items()
        if fixed.isdisjoint((norm, *layers))
    }
    if not pairs:
        return Smoothed(())
    seen = {norm: _Seen() for norm in pairs}
    handles = []
    for norm, found in seen.items():
        handles.append(model.get_submodule(norm).register_forward_hook(found.gives))
        for name in pairs[norm]:
            handles.append(model.get_submodule(name).register_forward_pre_hook(found.reads))
    try:
        batches = data if isinstance(data, Batches) else Batches(data)
        with state_kept(model):
            batches.run(model, lambda _number, _call: None, samples=_SAMPLES)
    finally:
        for handle in handles:
            handle.remove()
    done = []
    with torch.inference_mode(False), torch.no_grad():
        for norm, layers in pairs.items():
            readers = [(model.get_submodule(name), sites[name]) for name in layers]
            s = _divisor(readers, seen[norm])
            if s is not None:
                _divide(model.get_submodule(norm), s)
                for layer, _ in readers:
                    _multiply(layer, s)
                done.append((norm, layers))
    return Smoothed(tuple(done))


def _pairs(
    model: nn.Module, sites: dict[str, SitePlan], flows: Iterable[Flow]
) -> dict[str, tuple[str, ...]]:
    """Normalisations whose results only linear layers read, with these."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    calls: dict[str, int] = {}
    found: dict[str, tuple[str, ...]] = {}
    for flow in flows:
        parts = [part for step in flow.steps for part in step.fused or (step,)]
        for part in parts:
            calls[part.module] = calls.get(part.module, 0) + 1
        for part in parts:
            if part.module and _is_norm(model.get_submodule(part.module), owners):
                readers = [
                    other
                    for other in parts
                    if part.output in (*other.inputs, *refs(other.args), *refs(dict(other.kwargs)))
                ]
                names = tuple(reader.module for reader in readers)
                if (
                    names
                    and part.output not in refs(flow.output)
                    and all(
                        name in sites and _is_linear(model.get_submodule(name), owners)
                        for name in names
                    )
                ):
                    found[part.module] = names
    return {
        norm: names
        for norm, names in found.items()
        if all(calls[name] == 1 for name in (norm, *names))
        and any(sites[name].scheme is not None for name in names)
    }


def _is_norm(module: nn.Module, owners: dict[int, int]) -> bool:
    """A plain normalisation of the last dimension with a gain of its own, that no hook sees."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    if scripted or not any(type(module).forward is kind.forward for kind in _NORMS):
        return False
    weight = module._parameters.get("weight")
    return (
        weight is not None
        and weight.dim() == 1
        and all(owners[id(p)] == 1 for p in module._parameters.values() if p is not None)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _is_linear(module: nn.Module, owners: dict[int, int]) -> bool:
    weight = module._parameters.get("weight")
    return (
        quantized_class(module)[0] is QLinear
        and weight is not None
        and owners[id(weight)] == 1
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _divisor(readers: list[tuple[nn.Module, SitePlan]], seen: _Seen) -> Tensor | None:
    """float64 [C], or None where not rescaling is as good."""
    if seen.largest is None or seen.strangers or not bool(seen.largest.isfinite().all()):
        return None
    x = seen.largest.double().clamp(min=1e-5 * max(float(seen.largest.max()), 1e-30))
    weights = [canonical_weight(layer).double() for layer, _ in readers]
    w = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    if not bool(w.any()):
        return None
    w = w.clamp(min=1e-5 * float(w.max()))
    power = seen.squares / seen.rows

    def noise(s: Tensor) -> float:
        step_x = float((x / s).max())
        pairs = zip(weights, readers, strict=True)
        return sum(
            _noise(weight * s, site, step_x, power / s.square()) for weight, (_, site) in pairs
        )

    best, lowest = None, _GAIN * noise(torch.ones_like(x))
    for exponent in _POWERS:
        s = x**exponent / w ** (1 - exponent)
        s /= s.log().mean().exp()
        new = noise(s)
        if new < lowest:
            best, lowest = s, new
    return best


def _noise(weight: Tensor, site: SitePlan, largest: float, power: Tensor) -> float:
    """Expected squared error (times 12) of a layer's results on inputs of this size."""
    if site.scheme is None:
        return 0.0
    step_x = 0.0 if site.activations == "float" else 2 * largest / (2**site.activation_bits - 1)
    size = site.scheme.group_size or weight.shape[1]
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % size))
    steps = padded.view(len(weight), -1, size).abs().amax(2) / site.scheme.qmax
    wide = steps.repeat_interleave(size, 1)[:, : weight.shape[1]]
    return step_x**2 * float(weight.square().sum()) + float((wide.square() * power).sum())


def _divide(norm: nn.Module, s: Tensor) -> None:
    for name in ("weight", "bias"):
        old = getattr(norm, name, None)
        if isinstance(old, Tensor):
            setattr(norm, name, _parameter(old.double() / s, old))


def _multiply(layer: nn.Module, s: Tensor) -> None:
    """Weights of input channels multiplied by s."""
    old = layer._parameters["weight"]
    assert old is not None
    weight = canonical_weight(layer)
    made = weight.double() * s
    # transformers' Conv1D: [in, out].
    layer._parameters["weight"] = _parameter(
        made.t() if weight.stride() != old.stride() else made, old
    )


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
