"""The kinds of steps in a region program (csrc/README.md), one row a kind.

Whatever else in Python depends on the kind of a step (parsing, shapes, planning, lowering) asks its
row: a new kind is a new row here, next to the file that computes it in csrc/kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ADD",
    "AFFINE",
    "CONV_DYNAMIC",
    "CONV_F32",
    "FLATTEN",
    "LINEAR_F32",
    "PAD",
    "PLANNED",
    "PRODUCTS",
    "QUANTIZE",
    "QUANTIZE_DYNAMIC",
    "STEPS",
    "TABLE",
    "Shape",
    "StepKind",
]

Shape = tuple[Any, ...]
Keys = Mapping[str, str]

_ROWS = ("rows",)
_IMAGE = ("image",)
_IMAGES = ("image", "image1d")
_LAYOUTS = (*_IMAGES, *_ROWS)


@dataclass(frozen=True)
class StepKind:
    """One kind of step.

    Attributes:
        name: the word in the program.
        keys: in the order of the text, separated by spaces; one in brackets may be missing.
        shape: the result's shape from the step's keys, the shapes of what it reads (as ``x``, else
            as ``in``), the layout of the first and the number of elements of its panel.
        reads: layouts that ``x`` may have in a plan.
        gives: layout of the result, "" for that of ``x``.
        planned: kind of the plan's step that becomes this one, "=" for the same name, "" where no
            plan has such a step.
        float_form: name of the kind with the same keys, without residual, whose result is float.
        is_product: a layer's weights, which are its panel, times x.
        is_sum: of two values; a product can add one of them before it rounds.
        is_pointwise: takes x element by element. At the ends of a region float does it better.
        moves: rearranges, repeats or leaves out elements of x and computes nothing.
        is_list: of any number of values, which may have the parameters of the result.
        composes: two of the kind in a row are one.
        doubles: keys whose numbers are doubles; those of all others are float32.
    """

    name: str
    keys: str
    shape: Callable[[Keys, Sequence[Shape], str, Any], Shape]
    reads: tuple[str, ...] = _LAYOUTS
    gives: str = ""
    planned: str = "="
    float_form: str = ""
    is_product: bool = False
    is_sum: bool = False
    is_pointwise: bool = False
    moves: bool = False
    is_list: bool = False
    composes: bool = False
    doubles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.planned == "=":
            object.__setattr__(self, "planned", self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Its keys, those that may be missing too."""
        return tuple(self.keys.replace("[", "").replace("]", "").split(" "))

    def has(self, key: str) -> bool:
        """Whether ``key`` is among its keys."""
        return key in self.names

    def accepts(self, keys: Iterable[str]) -> bool:
        """Whether a step of the kind may have these keys, in this order."""
        return " ".join(keys) in (" ".join(self.names), self.keys.partition(" [")[0])

    @property
    def is_entry(self) -> bool:
        """Whether it reads a float input of the program."""
        return self.has("in")

    @property
    def gives_float(self) -> bool:
        """Whether its result is float and leaves the program."""
        return self.is_product and not self.has("s")

    @property
    def passes_codes(self) -> bool:
        """Whether codes of x become codes of the result, with the same parameters."""
        return not (self.is_entry or self.gives_float or self.has("s"))

    @property
    def clamps(self) -> bool:
        """Whether limits of the result are part of it."""
        return self.has("lo")

    @property
    def has_layout(self) -> bool:
        """Whether it takes images only, or rows only."""
        return self.reads != _LAYOUTS

    @property
    def is_binary(self) -> bool:
        """Whether it computes from two values."""
        return self.has("y")


# ---- shapes --------------------------------------------------------------------------------------


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _same(_keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    return tuple(shapes[0])


def _conv(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    return (x[0], int(keys["channels"]), *_windows(x[2:], keys, ceil=False))


def _linear(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    return (*shapes[0][:-1], int(keys["channels"]))


def _pool(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    return (*x[:2], *_windows(x[2:], keys, ceil=keys["ceil"] == "1"))


def _windows(sizes: Sequence[Any], keys: Keys, ceil: bool) -> list[Any]:
    spatial = len(sizes)  # The last sizes of the pairs for height and width belong to these.
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


def _adaptive_pool(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    sizes = _ints(keys["size"])[2 - len(x) :]
    return (*x[:2], *(asked or given for asked, given in zip(sizes, x[2:], strict=True)))


def _concat(_keys: Keys, shapes: Sequence[Shape], layout: str, _panel: Any) -> Shape:
    x = shapes[0]
    channel = len(x) - 1 if layout in _ROWS else 1
    total = sum((other[channel] for other in shapes[1:]), x[channel])
    return (*x[:channel], total, *x[channel + 1 :])


def _gather_channels(_keys: Keys, shapes: Sequence[Shape], layout: str, panel: Any) -> Shape:
    (x,) = shapes
    return (*x[:-1], panel) if layout in _ROWS else (x[0], panel, *x[2:])


def _slice(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    ranges = (_ints(keys["h"]), _ints(keys["w"]))
    return (*x[:2], *(_sliced(n, *cut) for n, cut in zip(x[2:], ranges, strict=True)))


def _sliced(size: Any, start: int, stop: int, step: int) -> Any:
    end = size if stop < 0 else min(stop, size)
    return max(0, (end - start + step - 1) // step)


def _upsample_nearest(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    spatial = len(x) - 2
    sizes = _ints(keys["size"])[-spatial:]
    factors = [float.fromhex(f) for f in keys["scale"].split(",")][-spatial:]
    pairs = zip(x[2:], sizes, factors, strict=True)
    return (*x[:2], *(size or _scaled(n, factor) for n, size, factor in pairs))


def _scaled(size: Any, factor: float) -> Any:
    """floor(size * factor); for whole factors in integers, so that symbolic sizes stay symbolic."""
    return size * int(factor) if factor == int(factor) else math.floor(float(size) * factor)


def _pad(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    top, left, bottom, right = _ints(keys["pad"])
    added = [top + bottom, left + right][2 - len(x) :]
    return (*x[:2], *(n + more for n, more in zip(x[2:], added, strict=True)))


def _flatten(_keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    (x,) = shapes
    return (x[0], math.prod(x[2:], start=x[1]))


def _unflatten(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    return (shapes[0][0], *_ints(keys["size"]))


def _pixel_shuffle(keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    n, c, h, w = shapes[0]
    factor = int(keys["factor"])
    return (n, c // (factor * factor), h * factor, w * factor)


def _to_rows(_keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    n, c, h, w = shapes[0]
    return (n, h, w, c)


def _to_image(_keys: Keys, shapes: Sequence[Shape], _layout: str, _panel: Any) -> Shape:
    n, h, w, c = shapes[0]
    return (n, c, h, w)


# ---- rows ----------------------------------------------------------------------------------------

STEPS: dict[str, StepKind] = {}
"""Every kind by its name."""


def _row(row: StepKind) -> StepKind:
    STEPS[row.name] = row
    return row


_GEOMETRY = "kernel stride pad dilation"

QUANTIZE = _row(StepKind("quantize", "in layout s z max", _same, planned=""))
QUANTIZE_DYNAMIC = _row(
    StepKind("quantize_dynamic", "in layout max", _same, reads=_IMAGES, planned="")
)
_row(
    StepKind(
        "conv",
        f"x panel channels {_GEOMETRY} s z max lo hi [r]",
        _conv,
        reads=_IMAGES,
        float_form="conv_f32",
        is_product=True,
    )
)
_row(
    StepKind(
        "linear",
        "x panel channels s z max lo hi [r]",
        _linear,
        reads=_ROWS,
        gives="rows",
        float_form="linear_f32",
        is_product=True,
    )
)
CONV_F32 = _row(
    StepKind(
        "conv_f32",
        f"x panel channels {_GEOMETRY} lo hi",
        _conv,
        reads=_IMAGES,
        float_form="conv_f32",
        is_product=True,
    )
)
LINEAR_F32 = _row(
    StepKind(
        "linear_f32",
        "x panel channels lo hi",
        _linear,
        reads=_ROWS,
        gives="rows",
        float_form="linear_f32",
        is_product=True,
    )
)
CONV_DYNAMIC = _row(
    StepKind(
        "conv_dynamic",
        f"x panel channels {_GEOMETRY}",
        _conv,
        reads=_IMAGES,
        planned="",
        is_product=True,
    )
)
ADD = _row(StepKind("add", "x y s z max lo hi", _same, is_sum=True))
_row(StepKind("mul", "x y s z max lo hi", _same, is_pointwise=True))
_row(StepKind("concat", "x s z max", _concat, is_list=True))
AFFINE = _row(
    StepKind(
        "affine",
        "x panel s z max lo hi",
        _same,
        is_pointwise=True,
        composes=True,
    )
)
TABLE = _row(
    StepKind("table", "x panel s z max", _same, planned="unary", is_pointwise=True, composes=True)
)
_row(StepKind("channel_table", "x panel s z max", _same, is_pointwise=True))
_row(StepKind("max_pool", f"x {_GEOMETRY} ceil", _pool, reads=_IMAGES))
_row(
    StepKind(
        "avg_pool",
        "x kernel stride pad ceil include_pad divisor s z max",
        _pool,
        reads=_IMAGES,
    )
)
_row(StepKind("adaptive_avg_pool", "x size s z max", _adaptive_pool, reads=_IMAGES))
_row(StepKind("adaptive_max_pool", "x size", _adaptive_pool, reads=_IMAGES))
_row(StepKind("gather_channels", "x panel", _gather_channels, reads=_IMAGES, moves=True))
_row(StepKind("slice", "x h w", _slice, reads=_IMAGE, moves=True))
_row(
    StepKind(
        "upsample_nearest",
        "x size scale",
        _upsample_nearest,
        reads=_IMAGES,
        moves=True,
        doubles=("scale",),
    )
)
_row(StepKind("pixel_shuffle", "x factor", _pixel_shuffle, reads=_IMAGE, moves=True))
PAD = _row(StepKind("pad", "x pad mode value", _pad, reads=_IMAGES, moves=True))
FLATTEN = _row(StepKind("flatten", "x", _flatten, reads=_IMAGES, gives="rows", moves=True))
_row(StepKind("unflatten", "x size", _unflatten, reads=_ROWS, gives="image", moves=True))
_row(StepKind("to_rows", "x", _to_rows, reads=_IMAGE, gives="rows", moves=True))
_row(StepKind("to_image", "x", _to_image, reads=_ROWS, gives="image", moves=True))

PLANNED: dict[str, StepKind] = {row.planned: row for row in STEPS.values() if row.planned}
"""Kinds of a plan's steps that run in integers, to the rows that they become."""

PRODUCTS = frozenset(kind for kind, row in PLANNED.items() if row.is_product)
"""Kinds of a plan's steps that are layers with weights."""
