"""The types of public arguments, by name: for signatures here, and for annotations in your code.

Each list of words is checked by a test against the table that gives the words their meaning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict, TypeVar

from torch import Tensor, nn

from octavo.planning.plan import Plan

__all__ = [
    "ActivationBits",
    "Bits",
    "Data",
    "Effort",
    "Evaluate",
    "FilePath",
    "Grid",
    "GroupSize",
    "Model",
    "Pattern",
    "Patterns",
    "QatMethod",
    "QuantizeOptions",
    "Ranges",
    "Rounding",
    "SharedOptions",
    "TargetName",
    "Width",
]

Model = TypeVar("Model", bound=nn.Module)
"""The class of a model, which calls keep. One that is a single layer becomes that layer's integer
class, which its type does not say.
"""

Width: TypeAlias = SupportsIndex
"""Bits of one tensor, 2 to 8: an int, or one of NumPy's integers."""

ActivationBits: TypeAlias = Literal["dynamic", "float"] | Width
"""What activations are: quantized row by row, not at all, or to that many bits by static ranges."""

Bits: TypeAlias = (
    Width
    | float
    | tuple[Width, ActivationBits]
    | Mapping[Any, Width | tuple[Width, Width]]
    | Plan
    | Path
)
"""Bits of all layers, their average, a pair (weights, activations), by `Pattern`, or a plan."""

Pattern: TypeAlias = str | type[nn.Module]
"""Which layers: a name, a glob, "@first", "@last", or a class."""

Patterns: TypeAlias = Pattern | Iterable[Pattern]

Data: TypeAlias = Tensor | Mapping[str, Any] | Iterable[Any] | Callable[[nn.Module], object]
"""One batch, several, or a callable that is given the model and runs it."""

Evaluate: TypeAlias = Callable[[nn.Module], float]
"""From a model to its score; higher is better."""

FilePath: TypeAlias = str | os.PathLike[str]

GroupSize: TypeAlias = Literal["tensor"] | SupportsIndex

Grid: TypeAlias = Literal["linear", "pot", "apot", "log", "kmeans", "nf"]
Rounding: TypeAlias = Literal["nearest", "squant", "hqq", "gptq", "adaround", "qdrop"]
Ranges: TypeAlias = Literal["typical", "huber", "mse", "minmax", "percentile"]
Effort: TypeAlias = Literal["fast", "balanced", "best"]
QatMethod: TypeAlias = Literal["ste", "lsq", "lsq+", "pact", "dorefa"]
TargetName: TypeAlias = Literal["phone", "edge", "server", "notebook"]


class SharedOptions(TypedDict, total=False):
    """Arguments of `octavo.quantize` that `octavo.pareto_front` passes on, for all settings."""

    activations: ActivationBits | None
    group_size: GroupSize | None
    symmetric: bool
    rounding: Rounding | None
    ranges: Ranges | None
    effort: Effort
    exclude: Patterns
    include: Patterns | None
    strict: bool


class QuantizeOptions(SharedOptions, total=False):
    """Arguments of `octavo.quantize` that `octavo.Advice.apply` passes on."""

    bits: Bits
    grid: Grid
    evaluate: Evaluate | None
    max_drop: float | None
    qat: bool
    qat_method: QatMethod | None
    inplace: bool
    progress: bool
