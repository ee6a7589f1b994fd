"""Shapes of a region program's results, with symbolic sizes, for the fake kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["region_output_shapes"]

_Shape = tuple[Any, ...]


def region_output_shapes(
    program: str, input_shapes: Sequence[Sequence[Any]], panel_counts: Sequence[Any]
) -> list[tuple[_Shape, bool]]:
    """Shape of each result of a program, and whether it is an image [N, C, H, W].

    Args:
        program: text in the form of csrc/README.md.
        input_shapes: of the inputs, in order; sizes may be symbolic integers.
        panel_counts: elements of each panel (those of gather_channels are its channels).
    """
    shapes: list[_Shape] = []
    layouts: list[str] = []
    outputs: list[tuple[_Shape, bool]] = []
    for line in program.splitlines()[1:]:
        if line.startswith("out "):
            value = int(line.split()[1])
            outputs.append((shapes[value], layouts[value] == "image"))
            continue
        _, _, kind, *pairs = line.split(" ")
        keys = dict(pair.split("=", 1) for pair in pairs)
        layout = keys["layout"] if "in" in keys else layouts[_ints(keys["x"])[0]]
        shapes.append(_shape_after(kind, keys, shapes, input_shapes, panel_counts, layout))
        layouts.append(_LAYOUT_AFTER.get(kind, layout))
    return outputs


_LAYOUT_AFTER = {"flatten": "rows", "to_rows": "rows", "unflatten": "image", "to_image": "image"}


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shape_after(  # noqa: PLR0917 (all that a step's shape can follow from)
    kind: str,
    keys: Mapping[str, str],
    shapes: Sequence[_Shape],
    inputs: Sequence[Sequence[Any]],
    panel_counts: Sequence[Any],
    layout: str,
) -> _Shape:
    if kind.startswith("quantize"):
        return tuple(inputs[int(keys["in"])])
    read = [shapes[i] for i in _ints(keys["x"])]
    x = read[0]
    spatial = len(x) - 2  # The last sizes of the pairs for height and width belong to these.
    if kind.startswith("conv"):
        return (x[0], int(keys["channels"]), *_windows(x[2:], keys, ceil=False))
    if kind.startswith("linear"):
        return (*x[:-1], int(keys["channels"]))
    if kind in ("max_pool", "avg_pool"):
        return (*x[:2], *_windows(x[2:], keys, ceil=keys["ceil"] == "1"))
    if kind.startswith("adaptive"):
        sizes = _ints(keys["size"])[-spatial:]
        return (*x[:2], *(asked or given for asked, given in zip(sizes, x[2:], strict=True)))
    if kind == "concat":
        channel = len(x) - 1 if layout == "rows" else 1
        total = sum((other[channel] for other in read[1:]), x[channel])
        return (*x[:channel], total, *x[channel + 1 :])
    if kind == "gather_channels":
        return (
            (*x[:-1], panel_counts[int(keys["panel"])])
            if layout == "rows"
            else (
                x[0],
                panel_counts[int(keys["panel"])],
                *x[2:],
            )
        )
    if kind == "slice":
        return (
            *x[:2],
            *(_sliced(n, *_ints(keys[axis])) for n, axis in zip(x[2:], "hw", strict=True)),
        )
    if kind == "upsample_nearest":
        sizes = _ints(keys["size"])[-spatial:]
        factors = [float.fromhex(f) for f in keys["scale"].split(",")][-spatial:]
        pairs = zip(x[2:], sizes, factors, strict=True)
        return (*x[:2], *(size or _scaled(n, factor) for n, size, factor in pairs))
    if kind == "pad":
        top, left, bottom, right = _ints(keys["pad"])
        added = [top + bottom, left + right][-spatial:]
        return (*x[:2], *(n + more for n, more in zip(x[2:], added, strict=True)))
    if kind == "flatten":
        return (x[0], math.prod(x[2:], start=x[1]))
    if kind == "unflatten":
        return (x[0], *_ints(keys["size"]))
    if kind == "to_rows":
        return (x[0], x[2], x[3], x[1])
    if kind == "to_image":
        return (x[0], x[3], x[1], x[2])
    return x


def _windows(sizes: Sequence[Any], keys: Mapping[str, str], ceil: bool) -> list[Any]:
    spatial = len(sizes)
    kernel, stride = _ints(keys["kernel"])[-spatial:], _ints(keys["stride"])[-spatial:]
    dilation = _ints(keys.get("dilation", "1,1"))[-spatial:]
    top, left, bottom, right = _ints(keys["pad"])
    before, after = [top, left][-spatial:], [bottom, right][-spatial:]
    result = []
    for axis, size in enumerate(sizes):
        room = size + before[axis] + after[axis] - (dilation[axis] * (kernel[axis] - 1) + 1)
        if not ceil:
            result.append(room // stride[axis] + 1)
            continue
        count = (room + stride[axis] - 1) // stride[axis] + 1
        # The last window must start inside the image or its leading padding.
        result.append(count - 1 if (count - 1) * stride[axis] >= size + before[axis] else count)
    return result


def _sliced(size: Any, start: int, stop: int, step: int) -> Any:
    end = size if stop < 0 else min(stop, size)
    return max(0, (end - start + step - 1) // step)


def _scaled(size: Any, factor: float) -> Any:
    """floor(size * factor); for whole factors in integers, so that symbolic sizes stay symbolic."""
    return size * int(factor) if factor == int(factor) else math.floor(float(size) * factor)
