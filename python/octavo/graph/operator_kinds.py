"""Which integer step each ATen operator of an exported flow amounts to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.exported import Exported
from octavo.graph.flow import Flow, Ref, Step
from octavo.graph.functions import LAYOUT, operation
from octavo.graph.kinds import Recogniser
from octavo.graph.layouts import map_of, numbered, shape_of
from octavo.graph.sizes import Size, holds, value_of
from octavo.graph.trace import prune

__all__ = ["other_numbers", "recognise_operators"]

_ALIKE = 1e-6  # A normalisation with factors so near to 1 and 0 changes nothing.
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # By which another size may differ.
_END = 2**62


def recognise_operators(exported: Exported, model: nn.Module) -> Flow:
    """The flow with integer kinds and params; calls that make one integer step become one."""
    return prune(_OperatorRecogniser(exported, model).flow())


def other_numbers(flow: Flow, numbers: Mapping[str, int]) -> dict[str, int] | None:
    """Other numbers for all symbols that the flow's ranges and conditions allow; None if none."""
    several: list[tuple[str, ...]] = [tuple(numbers)]
    samples = [size for sizes in flow.sizes.values() for size in sizes[:1] if isinstance(size, str)]
    several += [tuple(dict.fromkeys(samples))] if samples else []
    for symbols in several:
        for step in _STEPS:
            changed = {**numbers, **{symbol: numbers[symbol] + step for symbol in symbols}}
            if _allowed(flow, changed):
                return changed
    return None


def _allowed(flow: Flow, numbers: Mapping[str, int]) -> bool:
    in_range = all(
        least <= numbers[symbol] and (most < 0 or numbers[symbol] <= most)
        for symbol, (least, most) in flow.ranges.items()
    )
    return in_range and all(holds(condition, numbers) for condition in flow.conditions)


class _OperatorRecogniser(Recogniser):
    layouts = LAYOUT | {"slice", "alias", "detach", "lift_fresh_copy", "split_with_sizes"}

    def __init__(self, exported: Exported, model: nn.Module) -> None:
        self.symbolic = exported.shapes
        shapes = {
            name: torch.Size(_concrete(shape, exported.numbers))
            for name, shape in exported.shapes.items()
        }
        super().__init__(exported.flow, model, shapes)
        self.example = dict(exported.numbers)
        self.other = other_numbers(exported.flow, exported.numbers)
        firsts = [sizes[0] for sizes in exported.flow.sizes.values() if sizes]
        self.samples = [size for size in firsts if isinstance(size, str)]

    def _function(self, step: Step) -> Step | None:
        name = operation(step.function)
        if self.shape(step.output) is None or step.function in ("get_attr", "constant"):
            return None
        if name == "getitem":
            name = self._first_result(step) or name
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            return self._batch_norm(step)
        if name in ("upsample_nearest1d", "upsample_nearest2d"):
            return self._upsample_operator(step)
        if name == "constant_pad_nd":
            padding, value = step.args[1], (step.args[2:] or (0,))[0]
            return self._pad(step, step.inputs[0], padding, "constant", value)
        return super()._function(step)

    def _first_result(self, step: Step) -> str:
        """The operator of which the step takes the first of several results."""
        source = self.producer.get(step.inputs[0])
        known = ("_native_batch_norm_legit_no_training",)
        found = operation(source.function) if source is not None and step.args[1] == 0 else ""
        return found if found in known else ""

    # ---- normalisations

    def _batch_norm(self, step: Step) -> Step | None:
        norm = self.producer[step.inputs[0]] if operation(step.function) == "getitem" else step
        names: tuple[str, ...] = (
            "x",
            "weight",
            "bias",
            "mean",
            "var",
            "training",
            "momentum",
            "eps",
        )
        if operation(norm.function) != "batch_norm":
            names = ("x", "weight", "bias", "mean", "var", "momentum", "eps")
        given = {**dict(zip(names, norm.args, strict=False)), **dict(norm.kwargs)}
        tensors = [given[key] for key in ("weight", "bias", "mean", "var")]
        if given.get("training", False) or not all(isinstance(t, Ref) for t in tensors[2:]):
            return None
        constants = [None if t is None else self._constant(t.name) for t in tensors]
        if any(c is None for c, t in zip(constants, tensors, strict=True) if t is not None):
            return None
        x = given["x"].name
        if _changes_nothing(constants, given["eps"]):
            return self._as(step, "identity", [x])
        shape = self.shapes[x]
        layout = {2: "rows", 3: "image1d", 4: "image"}.get(len(shape))
        return self._affine(step, x, layout, shape[1]) if layout else None

    # ---- sizes

    def _upsample_operator(self, step: Step) -> Step | None:
        x, size, scales = step.args[0].name, step.args[1], step.args[2:]
        if step.function.endswith(".vec"):
            factor = scales[0]
        else:
            factor = None if None in scales or not scales else list(scales)
        if any(isinstance(leaf, Size) for leaf in _flat([size, factor])):
            return None
        size = None if factor is not None else size
        return self._upsample(step, x, {"size": size, "scale_factor": factor})

    def _adaptive(self, step: Step, x: str, kind: str, size: Any) -> Step | None:
        return super()._adaptive(step, x, kind, self._without_own(x, size))

    def _avg_pool(self, step: Step, x: str, given: Mapping[str, Any]) -> Step | None:
        kernel = self._without_own(x, given["kernel_size"])
        if isinstance(kernel, list) and kernel and all(k is None for k in kernel):
            padding = given.get("padding", 0)
            if any(_flat([padding])) or given.get("divisor_override"):
                return None
            return self._as(step, "adaptive_avg_pool", [x], size=[1, 1], flatten=False)
        return super()._avg_pool(step, x, given)

    def _without_own(self, x: str, size: Any) -> Any:
        """None in place of sizes that are those of the image itself."""
        if not isinstance(size, (list, tuple)):
            return size
        own = self.symbolic[x][-len(size) :]
        return [
            None if isinstance(n, Size) and n.expression == e else n
            for n, e in zip(size, own, strict=True)
        ]

    # ---- changes of layout

    def _layout(
        self, step: Step, x: str, attempt: Callable[[Tensor], Tensor], literal: bool
    ) -> Step | None:
        """Tried with the example's sizes and with others."""
        if self.example and self.other is None:
            return None
        found = []
        for numbers in (self.example, self.other or {}):
            self.numbers = numbers
            found.append(map_of(numbered(_concrete(self.symbolic[x], numbers)), attempt))
            if found[-1] is None or not numbers:
                break
        single = {**self.example, **dict.fromkeys(self.samples, 1)}
        self.numbers = single
        shape = shape_of(numbered(_concrete(self.symbolic[x], single)), attempt)
        self.numbers = {}
        if shape != _concrete(self.symbolic[step.output], single):
            return None  # `squeeze` takes a lone sample's dimension away.
        if found[0] is None or any(other != found[0] for other in found):
            return None
        kind, params = found[0]
        if kind == "slice":
            cuts = self._cuts(step, x)
            if cuts is None:
                return None
            x, params = self._with_cuts_before(x, cuts)
        return self._as(step, kind, [x], **params)

    def _with_cuts_before(self, x: str, cuts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """One slice for height and width, which are cut by a call each."""
        before = self.found.get(x)
        if before is None or before.kind != "slice":
            return x, cuts
        whole, earlier = [0, -1, 1], before.params
        if any(cuts[axis] != whole and earlier[axis] != whole for axis in "hw"):
            return x, cuts
        both = {axis: cuts[axis] if earlier[axis] == whole else earlier[axis] for axis in "hw"}
        return before.inputs[0], both

    def _cuts(self, step: Step, x: str) -> dict[str, Any] | None:
        """Start, stop (-1: the end) and stride of height and width."""
        parts = self.between(step.output, [x])
        rank = len(self.shapes[x])
        cuts: dict[int, list[int]] = {}
        for part in parts or ():
            if operation(part.function) in ("alias", "contiguous", "clone"):
                continue
            if operation(part.function) != "slice":
                return None
            given: list[Any] = [*part.args[1:], *(0, None, None, 1)[len(part.args) - 1 :]]
            axis, start, stop, stride = given
            if any(isinstance(n, Size) for n in (start, stop, stride)):
                return None
            if stop is not None and stop < 0:
                return None
            start, stop = start or 0, -1 if stop is None or stop > _END else stop
            if (start, stop, stride) == (0, -1, 1):
                continue
            if start < 0 or stride < 1 or axis % rank in cuts or axis % rank < 2:
                return None
            cuts[axis % rank] = [start, stop, stride]
        return {"h": cuts.get(2, [0, -1, 1]), "w": cuts.get(3, [0, -1, 1])}


def _changes_nothing(constants: list[Tensor | None], eps: float) -> bool:
    weight, bias, mean, var = (None if c is None else c.double() for c in constants)
    assert mean is not None and var is not None
    multiplier = (1.0 if weight is None else weight) / torch.sqrt(var + eps)
    offset = (0.0 if bias is None else bias) - mean * multiplier
    return bool(((multiplier - 1).abs() < _ALIKE).all() and (offset.abs() < _ALIKE).all())


def _concrete(shape: tuple[Any, ...], numbers: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(value_of(size, numbers.__getitem__) for size in shape)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value
