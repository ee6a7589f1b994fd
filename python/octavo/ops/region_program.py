"""The text of region programs (csrc/README.md): read, written, and cut to single steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from octavo.ops.region_steps import QUANTIZE, STEPS, Shape, StepKind

__all__ = ["Line", "Program", "line_of", "parse"]

_HEADER = "octavo.region 1"
_READS = ("x", "y", "r")


@dataclass(frozen=True)
class Line:
    """One step of a program: its kind and its keys in order, as text."""

    kind: StepKind
    keys: Mapping[str, str]

    def reads(self) -> tuple[int, ...]:
        """Ids of the values that the step reads."""
        return tuple(
            int(i) for key in _READS if key in self.keys for i in self.keys[key].split(",")
        )

    def text(self, id: int) -> str:
        """The line that defines value ``id``."""
        keys = " ".join(f"{key}={value}" for key, value in self.keys.items())
        return f"{id} = {self.kind.name} {keys}\n"


def line_of(kind: StepKind, values: Mapping[str, Any]) -> Line:
    """One line of a program.

    Args:
        kind: the kind of region step.
        values: key to integer, float, word or list; keys that the kind does not have are ignored.

    Raises:
        ValueError: a key that the kind needs is missing.
    """
    keys = {key: _written(values[key], key in kind.doubles) for key in kind.names if key in values}
    if not kind.accepts(keys):
        raise ValueError(f"{kind.name}: expected values of {kind.keys!r}, got {sorted(values)}.")
    return Line(kind, keys)


def _written(value: Any, double: bool) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(_written(part, double) for part in value)
    if not isinstance(value, float):
        return str(value)
    return value.hex() if double else _float(value)


def _float(value: float) -> str:
    """A float32 in C99 hexadecimal."""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    rounded = torch.tensor(value, dtype=torch.float64).to(torch.float32).item()
    return float(rounded).hex()


@dataclass(frozen=True)
class Program:
    """A program as data: ``lines[i]`` defines value i; ``outputs`` are ids."""

    lines: tuple[Line, ...]
    outputs: tuple[int, ...]

    def text(self) -> str:
        """The program as operators take it; `parse` is the inverse."""
        lines = [line.text(id) for id, line in enumerate(self.lines)]
        return "".join([f"{_HEADER}\n", *lines, *(f"out {id}\n" for id in self.outputs)])

    def layout(self, id: int) -> str:
        """Layout of value ``id``: image, image1d or rows."""
        while not (line := self.lines[id]).kind.is_entry and not line.kind.gives:
            id = line.reads()[0]
        return line.kind.gives or line.keys["layout"]

    def parameters(self, id: int) -> tuple[str, str, str]:
        """Scale, zero point and largest code of value ``id``, as text."""
        while "s" not in (line := self.lines[id]).keys:
            id = line.reads()[0]
        return line.keys["s"], line.keys["z"], line.keys["max"]

    def shapes(
        self, input_shapes: Sequence[Sequence[Any]], panel_counts: Sequence[Any]
    ) -> tuple[Shape, ...]:
        """Shape of every value.

        Args:
            input_shapes: of the inputs, in order; sizes may be symbolic integers.
            panel_counts: elements of each panel (those of gather_channels are its channels).
        """
        found: list[Shape] = []
        layouts: list[str] = []
        for line in self.lines:
            if line.kind.is_entry:
                read, layout = [tuple(input_shapes[int(line.keys["in"])])], line.keys["layout"]
            else:
                ids = [int(i) for i in line.keys["x"].split(",")]
                read, layout = [found[i] for i in ids], layouts[ids[0]]
            panel = panel_counts[int(line.keys["panel"])] if "panel" in line.keys else 0
            found.append(line.kind.shape(line.keys, read, layout, panel))
            layouts.append(line.kind.gives or layout)
        return tuple(found)

    def cut(
        self, result: int, known: Sequence[int], as_float: bool = False
    ) -> tuple[Program, tuple[int, ...]]:
        """A program that computes value ``result`` alone, and which panels of this program it uses.

        Args:
            result: id of the value.
            known: ids of the values that it starts from; they become its inputs, in this order,
                quantized with their own parameters.
            as_float: for a convolution or linear step: its plain float result, without the residual
                and the clamp.
        """
        while as_float and not self.lines[result].kind.is_product:
            result = self.lines[result].reads()[0]
        lines = [self._entry(position, value) for position, value in enumerate(known)]
        ids = {value: position for position, value in enumerate(known)}
        panels: list[int] = []
        for value in self._between(result, frozenset(known)):
            line = self.lines[value]
            if as_float and value == result:
                line = _unclamped(line)
            replaced = {
                key: ",".join(str(ids[int(i)]) for i in line.keys[key].split(","))
                for key in _READS
                if key in line.keys
            }
            if "panel" in line.keys:
                replaced["panel"] = str(len(panels))
                panels.append(int(line.keys["panel"]))
            ids[value] = len(lines)
            lines.append(Line(line.kind, {**line.keys, **replaced}))
        return Program(tuple(lines), (ids[result],)), tuple(panels)

    def _entry(self, position: int, value: int) -> Line:
        """The step that makes input ``position`` what value ``value`` is."""
        s, z, largest = self.parameters(value)
        given = {"in": position, "layout": self.layout(value), "s": s, "z": z, "max": largest}
        return line_of(QUANTIZE, given)

    def _between(self, result: int, known: frozenset[int]) -> Iterable[int]:
        """Ids needed for ``result`` beyond ``known``, ascending."""
        needed: set[int] = set()
        waiting = [result]
        while waiting:
            value = waiting.pop()
            if value not in known and value not in needed:
                needed.add(value)
                waiting.extend(self.lines[value].reads())
        return sorted(needed)


def _unclamped(product: Line) -> Line:
    """The float form of a conv or linear line."""
    kind = STEPS[product.kind.float_form]
    return line_of(kind, {**product.keys, "lo": -math.inf, "hi": math.inf})


def parse(text: str) -> Program:
    """The program of a text.

    Raises:
        ValueError: the text is not of the form that csrc/README.md describes. Meaning is checked by
            the operators.
    """
    rows = text.split("\n")
    if rows[0] != _HEADER or rows[-1] != "":
        raise ValueError(f"region program: expected {_HEADER!r} and steps, got {rows[0][:40]!r}.")
    lines: list[Line] = []
    outputs: list[int] = []
    for row in rows[1:-1]:
        words = row.split(" ")
        if words[0] == "out" and len(words) == 2 and words[1].isdecimal():
            outputs.append(int(words[1]))
            continue
        if words[:2] != [str(len(lines)), "="] or len(words) < 3:
            raise ValueError(f"region program: expected '{len(lines)} = ...', got {row[:60]!r}.")
        kind = STEPS.get(words[2])
        if kind is None:
            raise ValueError(f"region program: expected a kind of step, got {words[2][:40]!r}.")
        pairs = [word.partition("=") for word in words[3:]]
        found = Line(kind, {key: value for key, _, value in pairs})
        if len(found.keys) != len(pairs) or any(not separator for _, separator, _ in pairs):
            raise ValueError(f"region program: expected key=value once each, got {row[:60]!r}.")
        if not kind.accepts(found.keys):
            raise ValueError(f"region program: expected keys {kind.keys!r}, got {row[:60]!r}.")
        if any(not 0 <= i < len(lines) for i in found.reads()):
            raise ValueError(f"region program: expected values defined before, got {row[:60]!r}.")
        lines.append(found)
    if not outputs or max(outputs) >= len(lines):
        raise ValueError(
            "region program: expected results among its steps, got none or unknown ones."
        )
    return Program(tuple(lines), tuple(outputs))
