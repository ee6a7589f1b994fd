"""A region's plan and its parameters to the program that `octavo.ops.run_region` takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.flow import Step, evaluate
from octavo.regions import RegionPlan
from octavo.scheme import QParams

__all__ = ["Program", "lower"]

_INF = math.inf


@dataclass(frozen=True, eq=False)
class Program:
    """A region as csrc/README.md describes it.

    text: the program.
    panels: for each ``panel=`` the name of the layer whose panel it is, or a tensor.
    inputs, outputs: names of the values, in the program's order.
    values: name of each value to its id in the text.
    """

    text: str
    panels: tuple[str | Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: dict[str, int]

    def __str__(self) -> str:
        return self.text


def lower(region: RegionPlan, params: Mapping[str, QParams], model: nn.Module) -> Program:
    """The region's program.

    Args:
        region: from the plan.
        params: of every value that maps to itself in ``region.params_of``, by the value's name.
        model: the float (folded) model: read for tables, affine factors and PReLU slopes, not for
          weights.

    Raises:
        ValueError: parameters of a value are missing.
    """
    missing = sorted(set(region.params_of.values()) - set(params))
    if missing:
        raise ValueError(
            f"lower: expected parameters of every value of region {region.name}, got none for "
            f"{missing}. Calibrate with data that reaches it."
        )
    return _Lowering(region, params, model).program()


def _list(numbers: Sequence[Any]) -> str:
    return ",".join(str(n) for n in numbers)


def _float(value: float) -> str:
    """A float32 in C99 hexadecimal."""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    rounded = torch.tensor(value, dtype=torch.float64).to(torch.float32).item()
    return float(rounded).hex()


class _Lowering:
    def __init__(self, region: RegionPlan, params: Mapping[str, QParams], model: nn.Module) -> None:
        self.region = region
        self.qparams = {value: params[root] for value, root in region.params_of.items()}
        self.model = model
        self.ids: dict[str, int] = {}
        self.lines: list[str] = []
        self.panels: list[str | Tensor] = []
        self.layer_panels: dict[str, int] = {}

    def program(self) -> Program:
        for position, value in enumerate(self.region.inputs):
            layout = self.region.layouts[value]
            self.add(value, "quantize", f"in={position} layout={layout} {self.params(value)}")
        for step in self.region.steps:
            getattr(self, f"_{step.kind.removesuffix('_f32')}")(step)
        lines = [
            "octavo.region 1",
            *self.lines,
            *(f"out {self.ids[value]}" for value in self.region.outputs),
        ]
        text = "".join(f"{line}\n" for line in lines)
        return Program(text, tuple(self.panels), self.region.inputs, self.region.outputs, self.ids)

    # ---- pieces of text

    def add(self, value: str, kind: str, keys: str) -> int:
        identifier = len(self.lines)
        self.lines.append(f"{identifier} = {kind} {keys}")
        self.ids[value] = identifier
        return identifier

    def params(self, value: str) -> str:
        p = self.qparams[value]
        return f"s={_float(p.scale)} z={p.zero_point} max={p.qmax}"

    def panel(self, source: str | Tensor) -> int:
        if isinstance(source, str):
            if source in self.layer_panels:
                return self.layer_panels[source]
            self.layer_panels[source] = len(self.panels)
        self.panels.append(source)
        return len(self.panels) - 1

    def codes(self, step: Step) -> str:
        """The clamp of a u8 result, in codes."""
        p = self.qparams[step.output]

        def code(real: float, end: int) -> int:
            if math.isinf(real):
                return end
            return min(max(round(real / p.scale) + p.zero_point, 0), p.qmax)

        lo = code(float(step.params.get("lo", -_INF)), 0)
        hi = code(float(step.params.get("hi", _INF)), p.qmax)
        return f"lo={lo} hi={hi}"

    def reals(self, step: Step) -> str:
        return f"lo={_float(step.params.get('lo', -_INF))} hi={_float(step.params.get('hi', _INF))}"

    # ---- steps, by kind

    def _conv(self, step: Step) -> None:
        p = step.params
        x, pad = self.ids[step.inputs[0]], p["pad"]
        if p["mode"] != "zeros":
            if any(pad):
                x = self.add(
                    f"{step.output}.pad",
                    "pad",
                    f"x={x} pad={_list(pad)} mode={p['mode']} value={_float(0.0)}",
                )
            pad = [0, 0, 0, 0]
        keys = (
            f"x={x} panel={self.panel(step.module)} channels={p['channels']} "
            f"kernel={_list(p['kernel'])} stride={_list(p['stride'])} pad={_list(pad)} "
            f"dilation={_list(p['dilation'])}"
        )
        self._product(step, keys)

    def _linear(self, step: Step) -> None:
        x = self.ids[step.inputs[0]]
        self._product(
            step, f"x={x} panel={self.panel(step.module)} channels={step.params['channels']}"
        )

    def _product(self, step: Step, keys: str) -> None:
        if step.kind.endswith("_f32"):
            self.add(step.output, step.kind, f"{keys} {self.reals(step)}")
            return
        residual = f" r={self.ids[step.inputs[1]]}" if len(step.inputs) == 2 else ""
        self.add(
            step.output,
            step.kind,
            f"{keys} {self.params(step.output)} {self.codes(step)}{residual}",
        )

    def _add(self, step: Step) -> None:
        x, y = (self.ids[value] for value in step.inputs)
        self.add(
            step.output, step.kind, f"x={x} y={y} {self.params(step.output)} {self.codes(step)}"
        )

    _mul = _add

    def _concat(self, step: Step) -> None:
        x = _list([self.ids[value] for value in step.inputs])
        self.add(step.output, "concat", f"x={x} {self.params(step.output)}")

    def _affine(self, step: Step) -> None:
        x, panel = self.ids[step.inputs[0]], self.panel(self._factors(step))
        self.add(
            step.output,
            "affine",
            f"x={x} panel={panel} {self.params(step.output)} {self.codes(step)}",
        )

    def _unary(self, step: Step) -> None:
        x, panel = self.ids[step.inputs[0]], self.panel(self._table(step))
        self.add(step.output, "table", f"x={x} panel={panel} {self.params(step.output)}")

    def _channel_table(self, step: Step) -> None:
        x, panel = self.ids[step.inputs[0]], self.panel(self._slopes(step))
        self.add(step.output, "channel_table", f"x={x} panel={panel} {self.params(step.output)}")

    def _max_pool(self, step: Step) -> None:
        p = step.params
        self.add(
            step.output,
            "max_pool",
            f"x={self.ids[step.inputs[0]]} kernel={_list(p['kernel'])} stride={_list(p['stride'])} "
            f"pad={_list(p['pad'])} dilation={_list(p['dilation'])} ceil={p['ceil']}",
        )

    def _avg_pool(self, step: Step) -> None:
        p = step.params
        self.add(
            step.output,
            "avg_pool",
            f"x={self.ids[step.inputs[0]]} kernel={_list(p['kernel'])} stride={_list(p['stride'])} "
            f"pad={_list(p['pad'])} ceil={p['ceil']} include_pad={p['include_pad']} "
            f"divisor={p['divisor']} {self.params(step.output)}",
        )

    def _adaptive_avg_pool(self, step: Step) -> None:
        flatten = step.params["flatten"]
        pooled = f"{step.output}.pooled" if flatten else step.output
        size = _list(step.params["size"])
        keys = f"x={self.ids[step.inputs[0]]} size={size} {self.params(step.output)}"
        identifier = self.add(pooled, "adaptive_avg_pool", keys)
        if flatten:
            self.add(step.output, "flatten", f"x={identifier}")

    def _adaptive_max_pool(self, step: Step) -> None:
        keys = f"x={self.ids[step.inputs[0]]} size={_list(step.params['size'])}"
        self.add(step.output, "adaptive_max_pool", keys)

    def _gather_channels(self, step: Step) -> None:
        panel = self.panel(torch.tensor(step.params["index"], dtype=torch.int32))
        self.add(step.output, "gather_channels", f"x={self.ids[step.inputs[0]]} panel={panel}")

    def _slice(self, step: Step) -> None:
        h, w = _list(step.params["h"]), _list(step.params["w"])
        self.add(step.output, "slice", f"x={self.ids[step.inputs[0]]} h={h} w={w}")

    def _upsample_nearest(self, step: Step) -> None:
        scale = ",".join(_float(factor) for factor in step.params["scale"])
        keys = f"x={self.ids[step.inputs[0]]} size={_list(step.params['size'])} scale={scale}"
        self.add(step.output, "upsample_nearest", keys)

    def _pad(self, step: Step) -> None:
        p = step.params
        keys = f"pad={_list(p['pad'])} mode={p['mode']} value={_float(p['value'])}"
        keys = f"x={self.ids[step.inputs[0]]} {keys}"
        self.add(step.output, "pad", keys)

    def _flatten(self, step: Step) -> None:
        self.add(step.output, step.kind, f"x={self.ids[step.inputs[0]]}")

    _to_rows = _flatten
    _to_image = _flatten

    def _unflatten(self, step: Step) -> None:
        keys = f"x={self.ids[step.inputs[0]]} size={_list(step.params['size'])}"
        self.add(step.output, "unflatten", keys)

    # ---- numbers

    def _reals_of(self, value: str) -> Tensor:
        """The real number of each code 0 .. 255 of a value, float64."""
        p = self.qparams[value]
        return (torch.arange(256, dtype=torch.float64) - p.zero_point) * p.scale

    def _codes_of(self, reals: Tensor, value: str) -> Tensor:
        """clamp(rne(reals / s + z)) in double, as uint8."""
        p = self.qparams[value]
        codes = torch.round(reals / p.scale + p.zero_point).clamp(0, p.qmax)
        return torch.nan_to_num(codes, nan=0.0).to(torch.uint8)

    def _double(self, name: str) -> nn.Module:
        """A float64 copy of a module without children (an activation); anything else as it is."""
        module = self.model.get_submodule(name)
        return module if any(True for _ in module.children()) else _plain_copy(module).double()

    def _table(self, step: Step) -> Tensor:
        (x,) = step.inputs
        values: dict[str, Any] = {x: self._reals_of(x)}
        with torch.no_grad():
            result = evaluate(step, self._double, values)
        return self._codes_of(result.double().flatten(), step.output)

    def _slopes(self, step: Step) -> Tensor:
        """PReLU: code of max(x, 0) + slope[c] * min(x, 0)."""
        module = self.model.get_submodule(_module_of(step))
        assert isinstance(module, nn.PReLU)
        reals = self._reals_of(step.inputs[0])
        slopes = module.weight.detach().double()
        return self._codes_of(
            reals.clamp(min=0) + slopes[:, None] * reals.clamp(max=0), step.output
        )

    def _factors(self, step: Step) -> Tensor:
        """float32 [2, C]: multiplier and offset a channel, from the step's results at 0 and 1."""
        channels = step.params["channels"]
        shape = {"image": (1, channels, 1, 1), "image1d": (1, channels, 1)}.get(
            step.params["layout"], (1, channels)
        )
        parts = step.fused or (step,)
        last = [part.output for part in parts].index(step.params["result"])
        results = []
        for number in (0.0, 1.0):
            x = torch.full(shape, number, dtype=torch.float64)
            values: dict[str, Any] = {step.inputs[0]: x}
            with torch.no_grad():
                # Not further: a clamp behind it may write into the result.
                for part in parts[: last + 1]:
                    result = evaluate(part, self._double, values)
            results.append(result.double().flatten())
        offset, at_one = results
        return torch.stack([at_one - offset, offset]).float()


def _module_of(step: Step) -> str:
    """The layer of a step, its own or that of the one layer fused into it."""
    return step.module or next(part.module for part in step.fused if part.module)


def _plain_copy(module: nn.Module) -> nn.Module:
    """A copy without hooks: computing a table is no call that a hook should see."""
    memo: dict[int, Any] = {}
    for name, table in vars(module).items():
        if "hooks" in name:
            memo[id(table)] = type(table)()
    return copy.deepcopy(module, memo)
