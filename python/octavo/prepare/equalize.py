"""Channel ranges made alike in networks with depthwise convolutions: activations share one range.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
section 4.1, with activation ranges measured on data: values that go from layers to layers through
nothing but sums and max(x, 0) may have each channel divided by any s_c > 0 if the layers that read
them take the product back. The network computes the same function. Changes the model it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.data import Batches
from octavo.graph.flow import Flow, Step, run
from octavo.graph.replay import replayed
from octavo.nn.kept_state import state_kept
from octavo.nn.registry import is_depthwise
from octavo.ops.region_steps import PLANNED
from octavo.planning.plan import Plan, RegionPlan

__all__ = ["Equalized", "equalize"]

_SAMPLES = 128  # Typical magnitudes are wanted, not those of the rarest image.
_SMALLEST = 1 / 8  # Quiet channels are not blown up further: other data may be louder.
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Equalized:
    """The layers whose channels were rescaled.

    Attributes:
        groups: (layers whose output channels were divided, layers that multiply them again).
    """

    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    @property
    def divided(self) -> frozenset[str]:
        """Names of the layers whose output channels were divided."""
        return frozenset(name for writers, _ in self.groups for name in writers)

    def __str__(self) -> str:
        lines = [f"{', '.join(a)} -> {', '.join(b)}" for a, b in self.groups]
        return "\n".join(lines) or "nothing to equalize"


@dataclass(frozen=True, eq=False)
class _Group:
    """Values that share the scale of each channel, and the layers that write and read them."""

    flow: Flow
    values: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]


class _Channels:
    """Per channel: the largest magnitude and the mean square."""

    def __init__(self) -> None:
        self.largest = torch.zeros(0, dtype=torch.float32)
        self.squares = torch.zeros(0, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, axis: int) -> None:
        """Take in one tensor."""
        rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
        if rows.numel() == 0:
            return
        largest = rows.abs().amax(1)
        squares = rows.square().mean(1, dtype=torch.float64) * rows.shape[1]
        if self.count:
            largest, squares = torch.maximum(self.largest, largest), self.squares + squares
        self.largest, self.squares = largest, squares
        self.count += rows.shape[1]


def equalize(
    model: nn.Module, plan: Plan, data: object, read_elsewhere: frozenset[str] = frozenset()
) -> Equalized:
    """Rescales channels in the regions that hold a depthwise convolution.

    s_c = (r_c / max r)^p, r_c the channel's largest magnitude on the first samples, with the power
    p out of 0, 0.25, ... 1 that minimises the noise expected in the results of the layers that
    read: step_x^2 sum_c s_c^2 |w_c|^2 + sum_o step_o^2 sum_c E[x_c^2] / s_c^2. p = 0 changes
    nothing. Layers with hooks are not changed.

    Args:
        model: the float model of the plan, folded; its parameters are replaced.
        plan: tells what stands between layers.
        data: the batches.
        read_elsewhere: tensors that must stay as they are (`octavo.graph.capture.Capture`).
    """
    fixed = {name.rpartition(".")[0] for name in read_elsewhere}
    free = _free_layers(model, plan) - fixed
    groups = [
        group
        for plan_of in plan.flows
        for region in plan_of.regions
        if any(is_depthwise(model.get_submodule(name)) for name in region.layers)
        for group in _groups(plan_of.flow, region)
        if free.issuperset(group.writers) and free.issuperset(group.readers)
    ]
    if not groups:
        return Equalized(())
    seen = _observe(model, plan, groups, data if isinstance(data, Batches) else Batches(data))
    done = []
    with torch.inference_mode(False), torch.no_grad():
        for group in groups:
            readers = [model.get_submodule(name) for name in group.readers]
            divisor = _divisor(readers, seen[group])
            if divisor is not None:
                for name in group.writers:
                    _divide(model.get_submodule(name), divisor)
                for layer in readers:
                    _multiply(layer, divisor)
                done.append((group.writers, group.readers))
    return Equalized(tuple(done))


def _observe(
    model: nn.Module, plan: Plan, groups: list[_Group], batches: Batches
) -> dict[_Group, _Channels]:
    """Channel ranges of each group's values on the first samples."""
    seen = {group: _Channels() for group in groups}

    def handle(flow: Flow, tensors: tuple[Tensor, ...]) -> object:
        wanted = {value: group for group in groups if group.flow is flow for value in group.values}

        def observe(value: str, x: Tensor) -> None:
            if value in wanted:
                reader = model.get_submodule(wanted[value].readers[0])
                seen[wanted[value]].add(x, _axis(reader, x))

        return run(flow, model, *tensors, observe=observe)

    with state_kept(model), replayed(model, [plan_of.flow for plan_of in plan.flows], handle):
        batches.run(model, lambda _number, _call: None, samples=_SAMPLES)
    return seen


def _groups(flow: Flow, region: RegionPlan) -> Iterator[_Group]:
    """The groups of a region in which every value is written and read as it must be."""
    leader: dict[str, str] = {}

    def find(value: str) -> str:
        while leader.setdefault(value, value) != value:
            value = leader[value]
        return value

    fixed = {*region.inputs, *region.outputs}
    writers: list[Step] = []
    readers: list[Step] = []
    for step in region.steps:
        kind = PLANNED[step.kind]
        if kind.is_product:
            readers.append(step)
            if (step.fused or (step,))[0].module != step.module:  # Padded before, say.
                fixed.add(step.inputs[0])
            linked = step.inputs[1:]
        elif kind.is_sum:
            linked = step.inputs
        else:
            fixed |= {*step.inputs, step.output}
            continue
        limits = (step.params.get("lo", -torch.inf), step.params.get("hi", torch.inf))
        if limits not in ((-torch.inf, torch.inf), (0.0, torch.inf)) or kind.gives_float:
            fixed.add(step.output)
        if kind.is_product and not kind.gives_float:
            writers.append(step)
        for value in linked:
            leader[find(value)] = find(step.output)
    fixed = {find(value) for value in fixed}
    for root in dict.fromkeys(find(step.output) for step in writers):
        if root not in fixed:
            read = tuple(step.module for step in readers if find(step.inputs[0]) == root)
            if read:
                values = tuple(value for value in leader if find(value) == root)
                written = tuple(step.module for step in writers if find(step.output) == root)
                yield _Group(flow, values, written, read)


def _free_layers(model: nn.Module, plan: Plan) -> set[str]:
    """Plain layers of one use and one owner, whose results no hook sees."""
    used: dict[str, int] = {}
    for plan_of in plan.flows:
        for item in plan_of.items:
            for step in item.steps if isinstance(item, RegionPlan) else (item,):
                parts = step.fused or (step,)
                watched = any(
                    model.get_submodule(part.module)._forward_hooks
                    or model.get_submodule(part.module)._forward_pre_hooks
                    for part in parts
                    if part.module
                )
                for part in parts:
                    used[part.module] = used.get(part.module, 0) + (2 if watched else 1)
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name
        for name, count in used.items()
        if count == 1
        and isinstance(model.get_submodule(name), (nn.Linear, nn.Conv1d, nn.Conv2d))
        and owners[id(model.get_submodule(name).weight)] == 1
    }


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


def _divisor(readers: list[nn.Module], seen: _Channels) -> Tensor | None:
    """float64 [C], or None where it is best not to rescale."""
    if seen.count == 0 or not bool(seen.largest.isfinite().all()) or not bool(seen.largest.any()):
        return None
    largest = seen.largest.double()
    best, lowest = None, torch.inf
    for exponent in _POWERS:
        s = (largest / largest.max()).clamp(min=_SMALLEST) ** exponent
        step_x = float((largest / s).max()) / 255
        noise = sum(_noise(layer, s, step_x, seen.squares / seen.count) for layer in readers)
        if noise < lowest:
            best, lowest = (s if exponent else None), noise
    return best


def _noise(layer: nn.Module, s: Tensor, step_x: float, power: Tensor) -> float:
    """Expected squared error (times 12) of the layer's results with its inputs divided by s."""
    weight = _grouped(layer)
    groups, _, inputs, taps = weight.shape
    divisor = s.view(groups, 1, inputs, 1)
    scaled = weight * divisor
    step_w = scaled.abs().amax((2, 3), keepdim=True) / 127
    of_inputs = step_x**2 * float(scaled.square().sum())
    of_weights = float((step_w.square() * power.view(divisor.shape) / divisor.square()).sum())
    return of_inputs + of_weights * taps


def _divide(first: nn.Module, s: Tensor) -> None:
    """Output channels divided by s."""
    weight = first.weight
    assert isinstance(weight, nn.Parameter)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    first.weight = _parameter(weight.double() / s.view(shape), weight)
    if isinstance(first.bias, Tensor):
        first.bias = _parameter(first.bias.double() / s, first.bias)


def _multiply(second: nn.Module, s: Tensor) -> None:
    """Weights of input channels multiplied by s."""
    weight = second.weight
    assert isinstance(weight, nn.Parameter)
    grouped = _grouped(second)
    scaled = grouped * s.view(grouped.shape[0], 1, grouped.shape[2], 1)
    second.weight = _parameter(scaled.reshape(weight.shape), weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype), requires_grad=like.requires_grad)
