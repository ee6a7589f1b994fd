"""Bias correction: each output channel's mean quantization error, taken back into the bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
section 4.2, the
empirical form: b <- b - (mean(y_quantized) - mean(y_float)), means over batch and space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.batches import Batches
from octavo.codes import Codes
from octavo.flow import Flow, Step, evaluate, refs, substitute
from octavo.keys import RangeKey, SiteKey, ValueKey
from octavo.measure import decibels
from octavo.plan import FlowPlan, Plan, RegionPlan
from octavo.replay import replayed
from octavo.rounding.lockstep import fake_quantize
from octavo.rounding.units import apply_layer, last_uses
from octavo.scheme import QParams

__all__ = ["Correction", "correct_bias"]


@dataclasses.dataclass(frozen=True)
class Correction:
    """What `correct_bias` finds.

    codes: layer to its codes with the corrected bias. output_sqnr: layer to the SQNR (dB) of its
    output before the correction of its own bias, errors of earlier layers included; only layers
    that data reached.
    """

    codes: dict[str, Codes]
    output_sqnr: dict[str, float]


def correct_bias(
    model: nn.Module,
    plan: Plan,
    qparams: Mapping[RangeKey, QParams],
    codes: Mapping[str, Codes],
    data: object,
) -> Correction:
    """Codes whose biases make up for the mean error of every output channel.

    Float values and quantized values run side by side through each captured module, layer by layer
    in execution order: a layer sees what the corrected layers before it give. Its correction holds
    at once for the rest of the batch, and the corrections of all batches are averaged, weighted by
    their number of output positions. Layers outside of captured modules are compared on the float
    input.

    Args:
        model: the float model of the plan, folded. It comes back as it was.
        plan: what is stored in integers.
        qparams: its ranges, by the keys of `octavo.calibrate`.
        codes: layer to its rounded weight.
        data: the batches again.
    """
    batches = data if isinstance(data, Batches) else Batches(data)
    runner = _Lockstep(model, plan, qparams, codes)
    handles = [
        model.get_submodule(name).register_forward_hook(runner.hook(name), with_kwargs=True)
        for name in runner.alone
    ]
    try:
        plans = {id(plan_of.flow): plan_of for plan_of in plan.flows}
        with replayed(
            model,
            [plan_of.flow for plan_of in plan.flows],
            lambda flow, tensors: runner.run(plans[id(flow)], tensors),
        ):
            batches.run(model, lambda _number, _call: runner.start_batch())
    finally:
        for handle in handles:
            handle.remove()
    return runner.result()


class _Mean:
    """Per-channel means, weighted by the number of positions behind them."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.weight = 0
        self.power = 0.0
        self.noise = 0.0

    def add(self, mean: Tensor, positions: int) -> None:
        self.total = self.total + mean * positions
        self.weight += positions


class _Inside(dict[str, Any]):
    """Values of a region; what it does not define itself (sizes) is read from outside."""

    def __init__(self, outside: dict[str, Any]) -> None:
        super().__init__()
        self._outside = outside

    def __missing__(self, name: str) -> Any:
        return self._outside[name]


class _Lockstep:
    """Runs flows twice at once, in float and as the integers will, and gathers the differences."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        qparams: Mapping[RangeKey, QParams],
        codes: Mapping[str, Codes],
    ) -> None:
        self.model, self.qparams, self.codes = model, qparams, codes
        in_flows = {
            part.module
            for plan_of in plan.flows
            for item in plan_of.items
            for step in (item.steps if isinstance(item, RegionPlan) else (item,))
            for part in step.fused or (step,)
        }
        self.look_ups = {n for n in codes if isinstance(model.get_submodule(n), nn.Embedding)}
        self.alone = [name for name in codes if name not in in_flows | self.look_ups]
        self.static = {s.name for s in plan.sites if s.scheme and s.activations == "static"}
        self.means: dict[str, _Mean] = {}
        self.batch_bias: dict[str, Tensor] = {}

    def start_batch(self) -> None:
        """Forget the corrections of the last batch."""
        self.batch_bias.clear()

    def hook(self, name: str) -> Any:
        """A forward hook for a layer outside of captured modules."""

        def compare(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            p = self.qparams.get(SiteKey(name))
            self.layer(name, module, fake_quantize(x, p) if p else x, output)

        return compare

    def run(self, plan: FlowPlan, tensors: tuple[Tensor, ...]) -> Any:
        """The flow's float result, for a call in the middle of the float model."""
        flow = plan.flow
        wanted: dict[str, Any] = dict(zip(flow.parameters, tensors, strict=True))
        got: dict[str, Any] = {name: value.clone() for name, value in wanted.items()}
        steps = [
            step
            for item in plan.items
            for step in (item.steps if isinstance(item, RegionPlan) else (item,))
        ]
        last_use = last_uses(flow, steps)
        index = 0
        for item in plan.items:
            region, inner = (item, item.steps) if isinstance(item, RegionPlan) else (None, (item,))
            inside = got if region is None else _Inside(got)
            for value in region.inputs if region else ():
                inside[value] = self._stored(flow, region, value, got[value])
            for step in inner:
                defined: set[str] = set()
                for part in step.fused or (step,):
                    x = next(refs(part.args), part.inputs[0]) if part.inputs else ""
                    # The step may read its first input in another width than the float call it
                    # stands for.
                    self._part(part, x if x in defined else (*step.inputs, x)[0], wanted, inside)
                    defined.add(part.output)
                inside[step.output] = self._stored(flow, region, step.output, inside[step.output])
                for values in (wanted, got, inside):
                    for name in [n for n in values if last_use.get(n, -1) <= index]:
                        del values[name]
                index += 1
            for value in region.outputs if region else ():
                got[value] = inside[value]
        return substitute(flow.output, lambda ref: wanted[ref.name])

    def _stored(self, flow: Flow, region: RegionPlan | None, value: str, x: Any) -> Any:
        """The value as the region stores it; what leaves a layer as floats stays as it is."""
        owner = region.params_of.get(value) if region else None
        return x if owner is None else fake_quantize(x, self.qparams[ValueKey(flow.path, owner)])

    def _part(self, part: Step, x: str, wanted: dict[str, Any], got: dict[str, Any]) -> None:
        """One call, in float and on quantized values; ``x`` names a quantized layer's input."""
        module_of = self.model.get_submodule
        if part.module in self.look_ups:
            evaluate(part, module_of, wanted)
            table = self.codes[part.module].dequantize()
            got[part.output] = apply_layer(module_of(part.module), got[x], table, None)
        elif part.module in self.codes:
            y = evaluate(part, module_of, wanted)
            got[part.output] = self.layer(part.module, module_of(part.module), got[x], y)
        else:
            evaluate(part, module_of, wanted)
            evaluate(part, module_of, got)

    def layer(self, name: str, module: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
        """The corrected output of a layer with integer weights on the quantized input ``x``."""
        code = self.codes[name]
        bias = self.batch_bias.get(name, code.bias)
        y = apply_layer(module, x.to(torch.float32), code.dequantize(), bias)
        spatial = code.codes.dim() - 2  # Codes are [O, I], [O, I, k] or [O, I, kh, kw].
        channels = y.dim() - 1 - spatial
        positions = y.numel() // max(y.shape[channels], 1)
        if positions == 0:
            return y
        difference = wanted - y
        error = _channel_mean(difference, channels)
        mean = self.means.setdefault(name, _Mean())
        mean.power += float(torch.linalg.vector_norm(wanted)) ** 2
        mean.noise += float(torch.linalg.vector_norm(difference)) ** 2
        before = torch.zeros_like(error) if code.bias is None else code.bias.double()
        start = before if bias is None else bias.double()
        corrected = start + error
        mean.add(corrected - before, positions)
        if name not in self.batch_bias:
            self.batch_bias[name] = corrected.float()
        shape = [1] * y.dim()
        shape[channels] = -1
        return y.add_(error.float().view(shape))

    def result(self) -> Correction:
        """The averaged corrections, applied."""
        codes, sqnr = dict(self.codes), {}
        for name, mean in self.means.items():
            shift = mean.total / mean.weight
            assert isinstance(shift, Tensor)
            old = codes[name].bias
            bias = shift if old is None else old.double() + shift
            codes[name] = dataclasses.replace(codes[name], bias=bias.float())
            ratio = decibels(mean.power, mean.noise)
            if ratio is not None:
                sqnr[name] = ratio
        return Correction(codes, sqnr)


def _channel_mean(x: Tensor, channels: int) -> Tensor:
    """float64 [C]: means over all other dimensions; short float32 sums first, then double."""
    rows = x.movedim(channels, 0)
    while rows.dim() > 2:
        rows = rows.mean(-1)
    return rows.mean(1, dtype=torch.float64) if rows.dim() > 1 else rows.double()
