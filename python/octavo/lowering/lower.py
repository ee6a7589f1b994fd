"""A region's plan and its parameters to the program that `octavo.ops.run_region` takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.flow import Step, evaluate
from octavo.numerics.scheme import QParams
from octavo.ops import region_program
from octavo.ops.region_program import line_of
from octavo.ops.region_steps import FLATTEN, PAD, PLANNED, QUANTIZE, StepKind
from octavo.planning.region_plan import RegionPlan

__all__ = ["Program", "lower"]

_INF = math.inf


@dataclass(frozen=True, eq=False)
class Program:
    """A region as csrc/README.md describes it.

    Attributes:
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


class _Lowering:
    def __init__(self, region: RegionPlan, params: Mapping[str, QParams], model: nn.Module) -> None:
        self.region = region
        self.qparams = {value: params[root] for value, root in region.params_of.items()}
        self.model = model
        self.ids: dict[str, int] = {}
        self.lines: list[region_program.Line] = []
        self.panels: list[str | Tensor] = []
        self.layer_panels: dict[str, int] = {}

    def program(self) -> Program:
        for position, value in enumerate(self.region.inputs):
            layout = self.region.layouts[value]
            self.add(value, QUANTIZE, {"in": position, "layout": layout, **self.params(value)})
        for step in self.region.steps:
            self.step(step)
        outputs = tuple(self.ids[value] for value in self.region.outputs)
        text = region_program.Program(tuple(self.lines), outputs).text()
        return Program(text, tuple(self.panels), self.region.inputs, self.region.outputs, self.ids)

    def step(self, step: Step) -> None:
        """The line of a step, and those before and behind it that the step includes.

        What the keys of its kind mean is the same for every kind; all others are those of its
        params.
        """
        kind = PLANNED[step.kind]
        keys = {**step.params, **self.reads(kind, step)}
        if kind.is_product and step.params.get("mode", "zeros") != "zeros":
            if any(keys["pad"]):
                padding = {"x": keys["x"], "pad": keys["pad"], "mode": keys["mode"], "value": 0.0}
                keys["x"] = self.add(f"{step.output}.pad", PAD, padding)
            keys["pad"] = [0, 0, 0, 0]
        if kind.has("panel"):
            keys["panel"] = self.panel(
                step.module if kind.is_product else _PANELS[kind.name](self, step)
            )
        if kind.has("s"):
            keys |= self.params(step.output)
        if kind.clamps:
            keys |= self.reals(step) if kind.gives_float else self.codes(step)
        if step.params.get("flatten"):
            image = self.add(f"{step.output}.pooled", kind, keys)
            self.add(step.output, FLATTEN, {"x": image})
        else:
            self.add(step.output, kind, keys)

    # ---- keys

    def add(self, value: str, kind: StepKind, keys: Mapping[str, Any]) -> int:
        """The id of a value, which is the next line."""
        identifier = len(self.lines)
        self.lines.append(line_of(kind, keys))
        self.ids[value] = identifier
        return identifier

    def reads(self, kind: StepKind, step: Step) -> dict[str, Any]:
        ids = [self.ids[value] for value in step.inputs]
        if kind.is_list:
            return {"x": ids}
        return dict(zip(filter(kind.has, ("x", "y", "r")), ids, strict=False))

    def params(self, value: str) -> dict[str, Any]:
        p = self.qparams[value]
        return {"s": p.scale, "z": p.zero_point, "max": p.qmax}

    def panel(self, source: str | Tensor) -> int:
        if isinstance(source, str):
            if source in self.layer_panels:
                return self.layer_panels[source]
            self.layer_panels[source] = len(self.panels)
        self.panels.append(source)
        return len(self.panels) - 1

    def codes(self, step: Step) -> dict[str, Any]:
        """The clamp of a u8 result, in codes."""
        p = self.qparams[step.output]

        def code(real: float, end: int) -> int:
            if math.isinf(real):
                return end
            return min(max(round(real / p.scale) + p.zero_point, 0), p.qmax)

        lo = code(float(step.params.get("lo", -_INF)), 0)
        hi = code(float(step.params.get("hi", _INF)), p.qmax)
        return {"lo": lo, "hi": hi}

    def reals(self, step: Step) -> dict[str, Any]:
        limits = step.params.get("lo", -_INF), step.params.get("hi", _INF)
        return {"lo": float(limits[0]), "hi": float(limits[1])}

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

    def _in_double(self, parts: Sequence[Step], values: dict[str, Any]) -> Tensor:
        """The last call's result, with parameters and constants in float64 as the values are."""
        for part in parts:
            result = evaluate(part, self._double, values)
            if part.function in ("get_attr", "constant") and result.is_floating_point():
                values[part.output] = result.double()
        assert isinstance(result, Tensor)
        return result

    def _table(self, step: Step) -> Tensor:
        (x,) = step.inputs
        values: dict[str, Any] = {x: self._reals_of(x)}
        with torch.no_grad():
            result = self._in_double(step.fused or (step,), values)
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
                result = self._in_double(parts[: last + 1], values)
            results.append(result.double().flatten())
        offset, at_one = results
        return torch.stack([at_one - offset, offset]).float()


def _index(_lowering: _Lowering, step: Step) -> Tensor:
    """int32: the source of each channel."""
    return torch.tensor(step.params["index"], dtype=torch.int32)


# What the panel of a kind holds that is no layer's.
_PANELS: dict[str, Callable[[_Lowering, Step], Tensor]] = {
    "affine": _Lowering._factors,
    "table": _Lowering._table,
    "channel_table": _Lowering._slopes,
    "gather_channels": _index,
}


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
