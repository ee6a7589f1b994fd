"""Bias correction: each output channel's mean quantization error, taken back into the bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
section 4.2, the empirical form: b <- b - (mean(y_quantized) - mean(y_float)), means over batch and
space.

The mean error is the right answer only where most positions share it. In transformers a few tokens
hold giant values; a range that clips these gives a few giant errors, whose mean would move the bias
for all other tokens. So a second pass over the data judges each channel by its mean absolute error,
which such a shift makes larger, and each captured module by its results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from octavo.data import Batches
from octavo.graph.flow import Flow, Step, bound, evaluate, refs, with_values
from octavo.graph.keys import RangeKey, SiteKey, ValueKey
from octavo.graph.replay import replayed
from octavo.nn.hooks import is_watched
from octavo.nn.kept_state import state_kept
from octavo.nn.registry import looks_up
from octavo.numerics.codes import Codes
from octavo.numerics.scheme import QParams
from octavo.numerics.sqnr import decibels
from octavo.planning.plan import FlowPlan, Plan, RegionPlan
from octavo.rounding.blocks import apply_layer, channel_dimension, last_uses
from octavo.rounding.lockstep import fake_quantize

__all__ = ["Correction", "correct_bias"]


@dataclasses.dataclass(frozen=True)
class Correction:
    """What `correct_bias` finds.

    Attributes:
        codes: layer to its codes with the corrected bias.
        output_sqnr: layer to the SQNR (dB) of its output before the correction of its own bias,
            errors of earlier layers included; only layers that data reached and no hook sees.
    """

    codes: dict[str, Codes]
    output_sqnr: dict[str, float]


def correct_bias(
    model: nn.Module,
    plan: Plan,
    qparams: Mapping[RangeKey, QParams],
    codes: Mapping[str, Codes],
    data: object,
    *,
    fitted: bool = False,
) -> Correction:
    """Codes whose biases make up for the mean error of every output channel, where that helps.

    Float values and quantized values run side by side through each captured module, layer by layer
    in execution order: a layer sees what the corrected layers before it give. Its correction holds
    at once for the rest of the batch, and the corrections of all batches are averaged, weighted by
    their number of output positions. Layers outside of captured modules are compared on the float
    input.

    A second pass measures what the averages do: a channel whose mean absolute error does not fall
    keeps its bias, and so do all layers of a captured module whose results come no nearer to those
    of the float model. Layers that a forward hook sees, their own or that of a module around them,
    keep their biases: nobody knows what the hook makes of their results.

    Args:
        model: the float model of the plan, folded. It comes back as it was.
        plan: what is stored in integers.
        qparams: its ranges, by the keys of `octavo.prepare.calibrate`.
        codes: layer to its rounded weight.
        data: the batches again.
        fitted: whether the biases fit the data already. Then errors are only measured.
    """
    batches = data if isinstance(data, Batches) else Batches(data)
    walk = _Walk(model, plan, qparams, codes)
    means = _Means(codes)
    walk.over(batches, [means.layer], before=means.start_batch)
    if fitted:
        return Correction(dict(codes), means.output_sqnr())
    verdict = _Verdict(codes, means.shifts())
    walk.over(batches, [verdict.layer, verdict.uncorrected], after=verdict.flow)
    return Correction(verdict.codes_kept(walk.flow_of), means.output_sqnr())


_Layer = Callable[[str, nn.Module, Tensor, Tensor], Tensor]
"""A layer with integer weights: (name, module, quantized input, float output) -> output."""


class _Means:
    """First pass: the mean error of each output channel, and errors of layers beside signals."""

    def __init__(self, codes: Mapping[str, Codes]) -> None:
        self.codes = codes
        self.total: dict[str, Tensor] = {}
        self.positions: dict[str, int] = {}
        self.power: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        self.batch_shift: dict[str, Tensor] = {}

    def start_batch(self) -> None:
        """Forget the corrections of the last batch."""
        self.batch_shift.clear()

    def layer(self, name: str, module: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
        """The corrected output; a layer called again in a batch starts with its correction."""
        code = self.codes[name]
        start = self.batch_shift.get(name)
        y = _output(module, x, code, start)
        channels = channel_dimension(y, code)
        positions = y.numel() // max(y.shape[channels], 1)
        if positions == 0:
            return y
        difference = wanted - y
        error = _channel_mean(difference, channels)
        shift = error if start is None else start + error
        self.total[name] = self.total.get(name, 0.0) + shift * positions
        self.positions[name] = self.positions.get(name, 0) + positions
        power, noise = (
            float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2
            for v in (wanted, difference)
        )
        self.power[name] = self.power.get(name, 0.0) + power
        self.noise[name] = self.noise.get(name, 0.0) + noise
        # What only a few positions of the batch share is not handed on to the next layers either.
        before = _channel_mean(difference.abs(), channels)
        after = _channel_mean((difference - _spread(error, y, channels)).abs_(), channels)
        error = torch.where(after < before, error, 0.0)
        self.batch_shift.setdefault(name, error)
        return y.add_(_spread(error, y, channels))

    def shifts(self) -> dict[str, Tensor]:
        """Layer to float64 [C]: its mean error over all batches."""
        return {name: total / self.positions[name] for name, total in self.total.items()}

    def output_sqnr(self) -> dict[str, float]:
        """Layer to the SQNR of its outputs in dB."""
        found = {n: decibels(power, self.noise[n]) for n, power in self.power.items()}
        return {name: ratio for name, ratio in found.items() if ratio is not None}


class _Verdict:
    """Second pass: sums of absolute errors with the shifts and without them."""

    def __init__(self, codes: Mapping[str, Codes], shifts: Mapping[str, Tensor]) -> None:
        self.codes = codes
        self.shifts = shifts
        self.gain: dict[str, Tensor] = {}
        self.flow_gain: dict[int, float] = {}

    def layer(self, name: str, module: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
        """The layer's output with its shift; what the shift gains is added up."""
        code, shift = self.codes[name], self.shifts.get(name)
        y = _output(module, x, code, shift)
        if shift is not None:
            channels = channel_dimension(y, code)
            error = wanted - y
            after = error.abs()
            before = error.add_(_spread(shift, y, channels)).abs_()
            positions = y.numel() // max(y.shape[channels], 1)
            gain = _channel_mean(before - after, channels) * positions
            self.gain[name] = self.gain.get(name, 0.0) + gain
        return y

    def uncorrected(self, name: str, module: nn.Module, x: Tensor, _wanted: Tensor) -> Tensor:
        """The layer's output with the bias that it had."""
        return _output(module, x, self.codes[name], None)

    def flow(self, plan: FlowPlan, wanted: Any, corrected: Any, uncorrected: Any) -> None:
        """Compares the results of a captured module."""
        gain = _distance(wanted, uncorrected) - _distance(wanted, corrected)
        self.flow_gain[id(plan)] = self.flow_gain.get(id(plan), 0.0) + gain

    def codes_kept(self, flow_of: Mapping[str, FlowPlan]) -> dict[str, Codes]:
        """Codes with the biases that came nearer to the float model."""
        kept = dict(self.codes)
        for name, gain in self.gain.items():
            flow = flow_of.get(name)
            if flow is not None and self.flow_gain.get(id(flow), 0.0) < 0:
                continue
            shift = torch.where(gain > 0, self.shifts[name], 0.0)
            if shift.any():
                kept[name] = dataclasses.replace(kept[name], bias=_moved(kept[name].bias, shift))
        return kept


class _Inside(dict[str, Any]):
    """Values of a region; what it does not define itself (sizes) is read from outside."""

    def __init__(self, outside: dict[str, Any]) -> None:
        super().__init__()
        self._outside = outside

    def __missing__(self, name: str) -> Any:
        return self._outside[name]


class _Walk:
    """Runs the model in float and, side by side, as the integers will in one or several ways."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        qparams: Mapping[RangeKey, QParams],
        codes: Mapping[str, Codes],
    ) -> None:
        self.model, self.qparams, self.codes = model, qparams, codes
        self.look_ups = {n for n in codes if looks_up(model.get_submodule(n))}
        watched = {name for name, module in model.named_modules() if is_watched(module)}
        self.flows: list[FlowPlan] = []
        self.flow_of: dict[str, FlowPlan] = {}
        for plan_of in plan.flows:
            called = {part.module for step in _steps(plan_of) for part in step.fused or (step,)}
            if not any(_is_within(name, watched) for name in (plan_of.flow.path, *called)):
                self.flows.append(plan_of)
                self.flow_of |= dict.fromkeys(called.intersection(codes), plan_of)
        self.alone = [
            name
            for name in codes
            if name not in self.flow_of
            and name not in self.look_ups
            and not _is_within(name, watched)
        ]
        self.layers: Sequence[_Layer] = ()
        self.after: _After | None = None

    def over(
        self,
        batches: Batches,
        layers: Sequence[_Layer],
        before: Callable[[], None] = lambda: None,
        after: _After | None = None,
    ) -> None:
        """One pass over the data.

        Args:
            batches: the data.
            layers: what computes layers with integer weights, one for each way.
            before: called before each batch.
            after: called behind each captured module.
        """
        self.layers, self.after = layers, after
        handles = [
            self.model.get_submodule(name).register_forward_hook(self._hook(name), with_kwargs=True)
            for name in self.alone
        ]
        plans = {id(plan_of.flow): plan_of for plan_of in self.flows}
        try:
            with (
                state_kept(self.model),
                replayed(
                    self.model,
                    [plan_of.flow for plan_of in self.flows],
                    lambda flow, tensors: self._run(plans[id(flow)], tensors),
                ),
            ):
                batches.run(self.model, lambda _number, _call: before())
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        """A forward hook for a layer outside of captured modules."""

        def compare(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            p = self.qparams.get(SiteKey(name))
            self.layers[0](name, module, fake_quantize(x, p) if p else x, output)

        return compare

    def _run(self, plan: FlowPlan, tensors: tuple[Tensor, ...]) -> Any:
        """The flow's float result, for a call in the middle of the float model."""
        flow = plan.flow
        wanted = bound(flow, tensors)
        assert wanted is not None  # Other calls do not come here.
        ways = [{name: _copied(value) for name, value in wanted.items()} for _ in self.layers]
        last_use = last_uses(flow, _steps(plan))
        index = 0
        for item in plan.items:
            region, inner = (item, item.steps) if isinstance(item, RegionPlan) else (None, (item,))
            insides = [got if region is None else _Inside(got) for got in ways]
            for got, inside in zip(ways, insides, strict=True):
                for value in region.inputs if region else ():
                    inside[value] = self._stored(flow, region, value, got[value])
            for step in inner:
                defined: set[str] = set()
                for part in step.fused or (step,):
                    x = next(refs(part.args), part.inputs[0]) if part.inputs else ""
                    # The step may read its first input in another width than the float call it
                    # stands for.
                    self._part(part, x if x in defined else (*step.inputs, x)[0], wanted, insides)
                    defined.add(part.output)
                for inside in insides:
                    inside[step.output] = self._stored(
                        flow, region, step.output, inside[step.output]
                    )
                for values in (wanted, *ways, *insides):
                    for name in [n for n in values if last_use.get(n, -1) <= index]:
                        del values[name]
                index += 1
            for got, inside in zip(ways, insides, strict=True):
                for value in region.outputs if region else ():
                    got[value] = inside[value]
        result = _result(flow, wanted)
        if self.after is not None:
            self.after(plan, result, *(_result(flow, got) for got in ways))
        return result

    def _stored(self, flow: Flow, region: RegionPlan | None, value: str, x: Any) -> Any:
        """The value as the region stores it; what leaves a layer as floats stays as it is."""
        owner = region.params_of.get(value) if region else None
        if owner is None:
            return x
        return fake_quantize(x, self.qparams[ValueKey(flow.path, owner)]).to(x.dtype)

    def _part(
        self, part: Step, x: str, wanted: dict[str, Any], ways: Sequence[dict[str, Any]]
    ) -> None:
        """One call, in float and on quantized values; ``x`` names a quantized layer's input."""
        module_of = self.model.get_submodule
        y = evaluate(part, module_of, wanted)
        for got, layer in zip(ways, self.layers, strict=True):
            if part.module in self.look_ups:
                table = self.codes[part.module].dequantize()
                result = apply_layer(module_of(part.module), got[x], table, None)
                got[part.output] = result.to(y.dtype)
            elif part.module in self.codes:
                result = layer(part.module, module_of(part.module), got[x], y)
                got[part.output] = result.to(y.dtype)  # Float steps behind it have no other type.
            else:
                evaluate(part, module_of, got)


_After = Callable[..., None]
"""Called with a flow's plan, its float result and that of each way."""


def _steps(plan: FlowPlan) -> list[Step]:
    """The steps of a flow, those of its regions included."""
    return [
        step
        for item in plan.items
        for step in (item.steps if isinstance(item, RegionPlan) else (item,))
    ]


def _result(flow: Flow, values: Mapping[str, Any]) -> Any:
    return with_values(flow.output, values)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _is_within(name: str, modules: set[str]) -> bool:
    """Whether a module, or one around it up to the root, is among ``modules``."""
    return any(name == m or not m or name.startswith(f"{m}.") for m in modules)


def _output(module: nn.Module, x: Tensor, code: Codes, shift: Tensor | None) -> Tensor:
    """A layer's output with its codes, its bias moved by ``shift``."""
    bias = code.bias if shift is None else _moved(code.bias, shift)
    return apply_layer(module, x.to(torch.float32), code.dequantize(), bias)


def _moved(bias: Tensor | None, shift: Tensor) -> Tensor:
    return (shift if bias is None else bias.double() + shift).float()


def _spread(values: Tensor, y: Tensor, channels: int) -> Tensor:
    """float32, one for each channel, so that they broadcast against ``y``."""
    shape = [1] * y.dim()
    shape[channels] = -1
    return values.float().view(shape)


def _channel_mean(x: Tensor, channels: int) -> Tensor:
    """float64 [C]: means over all other dimensions; short float32 sums first, then double."""
    rows = x.movedim(channels, 0)
    while rows.dim() > 2:
        rows = rows.mean(-1)
    return rows.mean(1, dtype=torch.float64) if rows.dim() > 1 else rows.double()


def _distance(wanted: Any, got: Any) -> float:
    """Sum of absolute errors of all floats that a captured module returns."""
    pairs = zip(tree_leaves(wanted), tree_leaves(got), strict=True)
    return sum(
        float((w - g).abs().sum(dtype=torch.float64))
        for w, g in pairs
        if isinstance(w, Tensor) and w.is_floating_point()
    )
