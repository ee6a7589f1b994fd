"""Reads region programs (csrc/README.md) and cuts single steps out of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Line", "Program", "parse"]

_HEADER = "octavo.region 1"
_READS = ("x", "y", "r")
_ROWS = frozenset({"flatten", "to_rows", "linear", "linear_f32"})
_IMAGES = frozenset({"unflatten", "to_image"})
_PRODUCTS = ("conv", "linear")


@dataclass(frozen=True)
class Line:
    """One step of a program: its kind and its keys in order, as text."""

    kind: str
    keys: Mapping[str, str]

    def reads(self) -> tuple[int, ...]:
        """Ids of the values that the step reads."""
        return tuple(
            int(i) for key in _READS if key in self.keys for i in self.keys[key].split(",")
        )

    def text(self, id: int, **replaced: str) -> str:
        """The line as the value ``id`` of another program, with some keys replaced."""
        keys = " ".join(f"{key}={replaced.get(key, value)}" for key, value in self.keys.items())
        return f"{id} = {self.kind} {keys}".rstrip() + "\n"


@dataclass(frozen=True)
class Program:
    """A program as data: ``lines[i]`` defines value i; ``outputs`` are ids."""

    lines: tuple[Line, ...]
    outputs: tuple[int, ...]

    def layout(self, id: int) -> str:
        """Layout of value ``id``: image, image1d or rows."""
        line = self.lines[id]
        if "layout" in line.keys:
            return line.keys["layout"]
        if line.kind in _ROWS:
            return "rows"
        return "image" if line.kind in _IMAGES else self.layout(line.reads()[0])

    def parameters(self, id: int) -> tuple[str, str, str]:
        """Scale, zero point and largest code of value ``id``, as text."""
        line = self.lines[id]
        if "s" in line.keys:
            return line.keys["s"], line.keys["z"], line.keys["max"]
        return self.parameters(line.reads()[0])

    def cut(
        self, result: int, known: Sequence[int], as_float: bool = False
    ) -> tuple[str, tuple[int, ...]]:
        """A program that computes value ``result`` alone, and which panels of this program it uses.

        Args:
            result: id of the value.
            known: ids of the values that it starts from; they become its inputs, in this order,
            quantized with
                their own parameters.
            as_float: for a convolution or linear step: its plain float result, without the residual
            and the clamp.
        """
        while as_float and not self.lines[result].kind.startswith(_PRODUCTS):
            result = self.lines[result].reads()[0]
        ids: dict[int, int] = {}
        text = [_HEADER + "\n"]
        panels: list[int] = []
        for position, value in enumerate(known):
            s, z, largest = self.parameters(value)
            ids[value] = position
            text.append(
                f"{position} = quantize in={position} layout={self.layout(value)} s={s} z={z} "
                f"max={largest}\n"
            )
        for value in self._between(result, frozenset(known)):
            line = self.lines[value]
            replaced = {
                key: ",".join(str(ids[int(i)]) for i in line.keys[key].split(","))
                for key in _READS
                if key in line.keys
            }
            if "panel" in line.keys:
                replaced["panel"] = str(len(panels))
                panels.append(int(line.keys["panel"]))
            if as_float and value == result:
                line = _unclamped(line)
                replaced.pop("r", None)
            ids[value] = len(text) - 1
            text.append(line.text(ids[value], **replaced))
        text.append(f"out {ids[result]}\n")
        return "".join(text), tuple(panels)

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


def _unclamped(line: Line) -> Line:
    """The float form of a conv or linear line."""
    kept = {k: v for k, v in line.keys.items() if k not in ("s", "z", "max", "lo", "hi", "r")}
    return Line(f"{line.kind.removesuffix('_f32')}_f32", {**kept, "lo": "-inf", "hi": "inf"})


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
        pairs = [word.partition("=") for word in words[3:]]
        line = Line(words[2], {key: value for key, _, value in pairs})
        if len(line.keys) != len(pairs) or any(not separator for _, separator, _ in pairs):
            raise ValueError(f"region program: expected key=value once each, got {row[:60]!r}.")
        if any(not 0 <= i < len(lines) for i in line.reads()):
            raise ValueError(f"region program: expected values defined before, got {row[:60]!r}.")
        lines.append(line)
    if not outputs or max(outputs) >= len(lines):
        raise ValueError(
            "region program: expected results among its steps, got none or unknown ones."
        )
    return Program(tuple(lines), tuple(outputs))
