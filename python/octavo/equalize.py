"""Channel ranges made alike around depthwise convolutions, which per-tensor activations need.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
section 4.1, with activation ranges measured on data: where a layer's result goes through nothing
but a ReLU into one other layer, its channels may be divided by any s_c > 0 whose product the next
layer takes back. The network computes the same function. Changes the model it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.batches import Batches
from octavo.flow import Flow, Step, run
from octavo.plan import Plan, RegionPlan
from octavo.replay import replayed

__all__ = ["Equalized", "equalize"]

_SAMPLES = 128  # Largest values per channel settle early.
_SMALLEST = 1 / 32  # Quiet channels are not blown up further: other data may be louder.
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Equalized:
    """pairs: (layer whose channels were divided, layer that multiplies them again)."""

    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(f"{a} -> {b}" for a, b in self.pairs) or "nothing to equalize"


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two layers and the value between them."""

    flow: Flow
    first: str
    value: str
    second: str


class _Channels:
    """Per channel: the largest magnitude and the mean square."""

    def __init__(self) -> None:
        self.largest = torch.zeros(0)
        self.squares = torch.zeros(0, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, axis: int) -> None:
        rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
        largest = rows.abs().amax(1)
        squares = rows.square().mean(1, dtype=torch.float64) * rows.shape[1]
        if self.count:
            largest, squares = torch.maximum(self.largest, largest), self.squares + squares
        self.largest, self.squares = largest, squares
        self.count += rows.shape[1]


def equalize(model: nn.Module, plan: Plan, data: object) -> Equalized:
    """Rescales the channels between pairs of layers of which one is a depthwise convolution.

    s_c = (r_c / max r)^p, r_c the channel's largest magnitude on the first samples of the data,
    with the power p out of 0, 0.25, ... 1 that minimises the noise expected in the second layer's
    result: step_x^2 sum_c s_c^2 |w_c|^2 + sum_o step_o^2 sum_c E[x_c^2] / s_c^2. p = 0 changes
    nothing. Layers with hooks are left alone.

    Args:
        model: the float model of the plan, folded; its parameters are replaced.
        plan: tells what stands between layers.
        data: the batches.
    """
    pairs = [
        _Pair(plan_of.flow, first.module, first.output, second.module)
        for plan_of in plan.flows
        for region in plan_of.regions
        for first, second in _neighbours(region)
        if _may_change(model, plan, first, second)
    ]
    if not pairs:
        return Equalized(())
    seen = {pair: _Channels() for pair in pairs}

    def handle(flow: Flow, tensors: tuple[Tensor, ...]) -> object:
        wanted = {pair.value: pair for pair in pairs if pair.flow is flow}

        def observe(value: str, x: Tensor) -> None:
            if value in wanted:
                pair = wanted[value]
                seen[pair].add(x, _axis(model.get_submodule(pair.second), x))

        return run(flow, model, *tensors, observe=observe)

    batches = data if isinstance(data, Batches) else Batches(data)
    with replayed(model, [plan_of.flow for plan_of in plan.flows], handle):
        batches.run(model, lambda _number, _call: None, samples=_SAMPLES)
    done = []
    with torch.no_grad(), torch.inference_mode(False):
        for (
            pair
        ) in pairs:  # In execution order: a layer may be second in one pair, first in the next.
            divisor = _divisor(model.get_submodule(pair.second), seen[pair])
            if divisor is not None:
                _divide(model.get_submodule(pair.first), divisor)
                _multiply(model.get_submodule(pair.second), divisor)
                done.append((pair.first, pair.second))
    return Equalized(tuple(done))


def _neighbours(region: RegionPlan) -> Iterator[tuple[Step, Step]]:
    """Steps of which the first feeds nothing but the second, through nothing but max(x, 0)."""
    readers: dict[str, list[Step]] = {}
    for step in region.steps:
        for value in step.inputs:
            readers.setdefault(value, []).append(step)
    for step in region.steps:
        clamp = (step.params.get("lo", -torch.inf), step.params.get("hi", torch.inf))
        reader = readers.get(step.output, [])
        if (
            step.kind in ("conv", "linear")
            and len(step.inputs) == 1
            and clamp in ((-torch.inf, torch.inf), (0.0, torch.inf))
            and step.output not in region.outputs
            and len(reader) == 1
            and reader[0].kind.removesuffix("_f32") in ("conv", "linear")
            and reader[0].inputs[0] == step.output
            and (reader[0].fused or reader)[0].module == reader[0].module  # No padding of its own.
        ):
            yield step, reader[0]


def _may_change(model: nn.Module, plan: Plan, first: Step, second: Step) -> bool:
    """Both are plain layers of one use and one owner, not hooked, and one is depthwise."""
    names = [
        part.module
        for plan_of in plan.flows
        for item in plan_of.items
        for step in (item.steps if isinstance(item, RegionPlan) else (item,))
        for part in step.fused or (step,)
    ]
    between = {part.module for step in (first, second) for part in step.fused if part.module}
    hooked = any(
        model.get_submodule(name)._forward_hooks or model.get_submodule(name)._forward_pre_hooks
        for name in between | {first.module, second.module}
    )
    layers = [model.get_submodule(step.module) for step in (first, second)]
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return (
        not hooked
        and all(names.count(step.module) == 1 for step in (first, second))
        and all(isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) for layer in layers)
        and all(owners[id(layer.weight)] == 1 for layer in layers)
        and any(_is_depthwise(layer) for layer in layers)
    )


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv1d, nn.Conv2d)) and 1 < layer.groups == layer.in_channels


def _axis(layer: nn.Module, x: Tensor) -> int:
    """The dimension of a layer's input that holds channels."""
    spatial = len(layer.kernel_size) if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 0
    return x.dim() - 1 - spatial


def _grouped(layer: nn.Module) -> Tensor:
    """The weight as [groups, outputs of a group, inputs of a group, taps]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    groups = layer.groups if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 1
    return weight.detach().double().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _divisor(second: nn.Module, seen: _Channels) -> Tensor | None:
    """float64 [C], or None where leaving things alone is best."""
    if seen.count == 0 or not bool(seen.largest.isfinite().all()) or not bool(seen.largest.any()):
        return None
    weight = _grouped(second)
    groups, _, inputs, _ = weight.shape
    power = (seen.squares / seen.count).view(groups, 1, inputs, 1)
    largest = seen.largest.double()
    best, lowest = None, torch.inf
    for exponent in _POWERS:
        s = (largest / largest.max()).clamp(min=_SMALLEST) ** exponent
        grouped = s.view(groups, 1, inputs, 1)
        scaled = weight * grouped
        step_x = float((largest / s).max()) / 255
        step_w = scaled.abs().amax((2, 3), keepdim=True) / 127
        noise_x = step_x**2 * float(scaled.square().sum())
        noise_w = float((step_w.square() * power / grouped.square()).sum()) * weight.shape[3]
        if noise_x + noise_w < lowest:
            best, lowest = (s if exponent else None), noise_x + noise_w
    return best


def _divide(first: nn.Module, s: Tensor) -> None:
    """Output channels divided by s."""
    weight = first.weight
    assert isinstance(weight, nn.Parameter)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    first.weight = _parameter(weight.double() / s.view(shape), weight)
    if isinstance(first.bias, nn.Parameter):
        first.bias = _parameter(first.bias.double() / s, first.bias)


def _multiply(second: nn.Module, s: Tensor) -> None:
    """Weights of input channels multiplied by s."""
    weight = second.weight
    assert isinstance(weight, nn.Parameter)
    grouped = _grouped(second)
    scaled = grouped * s.view(grouped.shape[0], 1, grouped.shape[2], 1)
    second.weight = _parameter(scaled.reshape(weight.shape), weight)


def _parameter(value: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype), requires_grad=like.requires_grad)
