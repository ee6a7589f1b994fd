"""BatchNorm into the layer before it, plain weights, layers. Changes the model it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from octavo.data import Example
from octavo.graph.capture import Capture, capture
from octavo.graph.flow import Flow, Step, refs
from octavo.graph.functions import operation
from octavo.nn.decomposed.decompose import decompose
from octavo.nn.decomposed.protocol import parameter_like
from octavo.nn.surgery import own_class
from octavo.ops.region_steps import AFFINE, PRODUCTS

__all__ = ["Folded", "affine_of", "fold", "fold_pair", "materialise"]


@dataclass(frozen=True)
class Folded:
    """A model with fewer layers, and what was folded in it.

    Attributes:
        model: the one that was given.
        batch_norms: (name of the BatchNorm, name of the layer it went into).
        materialised: "<layer>.<tensor>" of weights that were computed from others before.
    """

    model: nn.Module
    batch_norms: tuple[tuple[str, str], ...] = ()
    materialised: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{norm} folded into {layer}" for norm, layer in self.batch_norms]
        lines += [f"{name} materialised" for name in self.materialised]
        return "\n".join(lines) or "nothing to fold"


def fold(model: nn.Module, example: Example = None, training: bool = False) -> Folded:
    """The same function with fewer layers, in place: pass a copy of the model, in eval mode.

    A BatchNorm with running statistics goes into the convolution or linear layer before it if
    nothing else reads that layer's result: w' = w * gamma / sqrt(var + eps), b' = (b - mean) *
    gamma / sqrt(var + eps) + beta, computed in double and rounded once. An Identity takes its
    place, its hooks stay.

    Args:
        model: any module; its parameters are replaced, not written into.
        example: as for `octavo.graph.capture.capture`. Without one, a BatchNorm behind a Linear
            stays, since nothing tells which dimension of its input holds the channels.
        training: as for `octavo.nn.decomposed.decompose.decompose`.
    """
    with torch.inference_mode(False), torch.no_grad():
        materialised = tuple(materialise(model))
        decompose(model, training)
        found = capture(model, example)
        pairs = tuple(_pairs(model, found))
        for norm_name, layer_name in pairs:
            fold_pair(model, norm_name, layer_name)
        inside = () if training else tuple(_functional_pairs(model, found))
        for norm, layer_name in inside:
            _scale(model.get_submodule(layer_name), *norm.factors())
            norm.neutralise()
        pairs += tuple((norm.name, layer_name) for norm, layer_name in inside)
    return Folded(model, pairs, materialised)


def materialise(model: nn.Module) -> Iterator[str]:
    """Makes weight_norm, spectral_norm and parametrized weights plain, in place; names them."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            own_class(module)
            for tensor, parts in list(module.parametrizations.items()):
                if isinstance(getattr(parts, "original", None), nn.Parameter):  # It is written to.
                    parts.original = parameter_like(parts.original.detach().clone(), parts.original)
                with torch.enable_grad():  # Else what is left would be no Parameter.
                    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
                yield f"{name}.{tensor}" if name else tensor
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                remove = (
                    remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
                )
                remove(module, hook.name)
                yield f"{name}.{hook.name}" if name else hook.name


def _pairs(model: nn.Module, found: Capture) -> Iterator[tuple[str, str]]:
    calls = {site.name: site.calls for site in found.sites}
    uses: dict[str, int] = {}
    for flow in found.flows:
        for step in flow.steps:
            uses[step.module] = uses.get(step.module, 0) + 1
    for flow in found.flows:
        producer = {step.output: step for step in flow.steps}
        readers: dict[str, int] = {}
        for value in [
            *refs(flow.output),
            *(v for step in flow.steps for v in dict.fromkeys(step.inputs)),
        ]:
            readers[value] = readers.get(value, 0) + 1
        for step in flow.steps:
            layer = producer.get(step.inputs[0]) if step.inputs else None
            if (
                step.kind != AFFINE.planned
                or not step.module
                or layer is None
                or readers[layer.output] != 1
            ):
                continue
            names = (step.module, layer.module)
            once = all(uses[name] == 1 and calls.get(name) in (None, 1) for name in names)
            if once and not _is_read(found, *names) and _fits(model, flow, step, layer):
                yield names


def _is_read(found: Capture, *modules: str) -> bool:
    """Whether others read tensors of these modules."""
    return any(name.rpartition(".")[0] in modules for name in found.read_elsewhere)


@dataclass(frozen=True)
class _Inside:
    """A normalisation that a module of the user's computes with tensors of its own.

    Attributes:
        name: the module.
        tensors: names of its gain, shift, mean and variance there, None where it has none.
    """

    module: nn.Module
    name: str
    tensors: tuple[str | None, str | None, str, str]
    eps: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """float64 multiplier and offset of each channel."""
        found = [None if name is None else getattr(self.module, name) for name in self.tensors]
        assert found[2] is not None and found[3] is not None
        return _factors(found[0], found[1], found[2], found[3], self.eps)

    def neutralise(self) -> None:
        """Makes it compute the identity: gain 1, shift 0, mean 0, and variance 1 less epsilon."""
        for name, number in zip(self.tensors, (1.0, 0.0, 0.0, 1.0 - self.eps), strict=True):
            if name is None:
                continue
            for table in (self.module._parameters, self.module._buffers):
                old = table.get(name)
                if old is not None:
                    table[name] = parameter_like(torch.full_like(old, number), old)


def _functional_pairs(model: nn.Module, found: Capture) -> Iterator[tuple[_Inside, str]]:
    """Normalisations in forwards of the user's own, with the layers that they go into."""
    calls = {site.name: site.calls for site in found.sites}
    parts = [part for flow in found.flows for step in flow.steps for part in step.fused or (step,)]
    uses = Counter(part.module for part in parts)
    reads = Counter(part.args[0] for part in parts if part.function == "get_attr")
    for flow in found.flows:
        producer = {step.output: step for step in flow.steps}
        readers = Counter(refs(flow.output))
        readers.update(v for step in flow.steps for v in dict.fromkeys(step.inputs))
        for step in flow.steps:
            norm = _inside(model, step) if step.kind == AFFINE.planned else None
            layer = producer.get(step.inputs[0]) if step.inputs else None
            if norm is None or layer is None or readers[layer.output] != 1:
                continue
            own = [f"{norm.name}.{name}".lstrip(".") for name in norm.tensors if name]
            once = uses[layer.module] == 1 and calls.get(layer.module) == 1
            if (
                once
                and all(reads[name] == 1 for name in own)
                and not found.read_elsewhere.intersection(own)
                and not _is_read(found, layer.module)
                and layer.kind in PRODUCTS
                and _takes_factors(model.get_submodule(layer.module), flow, layer, step)
            ):
                yield norm, layer.module


def _inside(model: nn.Module, step: Step) -> _Inside | None:
    """The normalisation that a step is, if its tensors are all those of one module."""
    *before, last = step.fused or (step,)
    if operation(last.function) != "batch_norm" or len(last.args) < 8:
        return None
    names = {part.output: part.args[0] for part in before if part.function == "get_attr"}
    found = [None if ref is None else names.get(ref.name, "") for ref in last.args[1:5]]
    owners = {name.rpartition(".")[0] for name in found if name is not None}
    if "" in found or len(owners) != 1 or None in found[2:]:
        return None
    (owner,) = owners
    gain, shift, mean, var = (None if n is None else n.rpartition(".")[2] for n in found)
    assert mean is not None and var is not None
    return _Inside(
        model.get_submodule(owner), owner, (gain, shift, mean, var), float(last.args[7])
    )


def _takes_factors(source: nn.Module, flow: Flow, layer: Step, step: Step) -> bool:
    """Whether a plain layer can be multiplied by one number an output channel."""
    if not isinstance(source, (nn.Linear, nn.Conv1d, nn.Conv2d)) or source._forward_hooks:
        return False
    if "forward" in source.__dict__:
        return False
    channels = source.out_features if isinstance(source, nn.Linear) else source.out_channels
    if isinstance(source, nn.Linear) and len(flow.shapes.get(layer.output, ())) != 2:
        return False
    return step.params["channels"] == channels and source.weight.is_floating_point()


def _fits(model: nn.Module, flow: Flow, step: Step, layer: Step) -> bool:
    norm, source = model.get_submodule(step.module), model.get_submodule(layer.module or "")
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or layer.kind not in PRODUCTS:
        return False
    if norm._forward_pre_hooks or "forward" in norm.__dict__:  # They change what it gets or does.
        return False
    return _takes_factors(source, flow, layer, step)


def fold_pair(model: nn.Module, norm_name: str, layer_name: str) -> None:
    """One BatchNorm into one layer, in place; an Identity takes the BatchNorm's place."""
    norm, layer = model.get_submodule(norm_name), model.get_submodule(layer_name)
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    assert isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
    _scale(layer, *affine_of(norm))
    identity = nn.Identity()
    for name, table in vars(norm).items():
        if "hooks" in name and name in vars(identity):
            vars(identity)[name] = table
    identity.train(norm.training)
    for name, module in model.named_modules(remove_duplicate=False):
        if module is norm:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, identity)


def _scale(layer: nn.Module, multiplier: Tensor, offset: Tensor) -> None:
    """Output channels of a layer multiplied, and an offset added to each."""
    assert isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
    weight = layer.weight.double()
    bias = torch.zeros_like(offset) if layer.bias is None else layer.bias.double()
    shape = [-1] + [1] * (weight.dim() - 1)
    like = layer.weight
    layer.weight = parameter_like(weight * multiplier.view(shape), like)
    layer.bias = parameter_like(bias * multiplier + offset, like)


def affine_of(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """float64 multiplier and offset of each channel: y = x * multiplier + offset.

    multiplier = gamma / sqrt(var + eps), offset = beta - mean * multiplier.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "affine_of: a BatchNorm with running statistics expected, got one without."
        )
    return _factors(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def _factors(
    gain: Tensor | None, shift: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    multiplier = 1.0 / torch.sqrt(var.double() + eps)
    if gain is not None:
        multiplier = multiplier * gain.double()
    offset = -mean.double() * multiplier
    if shift is not None:
        offset = offset + shift.double()
    return multiplier, offset
