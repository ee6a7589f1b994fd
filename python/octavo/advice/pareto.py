"""Accuracy, size and time of a model at many settings, and which of them no other beats."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from octavo import library
from octavo.api import quantize
from octavo.checkpoint.save import stored_bytes
from octavo.checks.model import check_model
from octavo.data import Batches, Call
from octavo.errors import describe
from octavo.interrupts import held_back, let_through
from octavo.nn.surgery import copy_model
from octavo.numerics.grids import GRIDS
from octavo.numerics.sqnr import tensor_bytes
from octavo.plot.pareto import plot_front
from octavo.reporting import html
from octavo.reporting.report import align, resident_bytes
from octavo.signature import check_names
from octavo.types import Bits, Data, Evaluate, Grid, SharedOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

__all__ = ["ParetoFront", "Point", "pareto_front"]

EQUAL_TIMES = 0.05
"""Times that differ by less than this share count as equal: that is what timing can tell apart."""


@dataclass(frozen=True)
class Point:
    """One setting, measured.

    Attributes:
        name: its bits and grid, "float" for the model itself.
        score: what ``evaluate`` returned.
        bytes: bytes that it takes in memory.
        file_bytes: bytes of the tensors in its file.
        seconds: time of the fastest call.
        best: whether no other point is as good in score, bytes, file and time, and better in one of
            them.
    """

    name: str
    score: float
    bytes: int
    file_bytes: int
    seconds: float
    best: bool = False


@dataclass(frozen=True)
class ParetoFront:
    """All points, the float model first. `str` gives the table, `plot` a picture.

    Attributes:
        samples: number of samples in the timed call.
    """

    points: tuple[Point, ...]
    isa: str
    threads: int
    samples: int

    @property
    def best(self) -> tuple[Point, ...]:
        """The points that no other beats."""
        return tuple(point for point in self.points if point.best)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)

    def plot(self) -> Figure:
        """A matplotlib figure: score over memory, file and time; what no other beats is filled."""
        return plot_front(self)

    def __str__(self) -> str:
        table = align([_HEADER, *map(_cells, self.points)], right={1, 2, 3, 4})
        return f"{table}\n\n{self._legend()}"

    __repr__ = __str__

    def _legend(self) -> str:
        return (
            "*: no other is as good in all of score, memory, file and time, and better in one "
            f"(times within {100 * EQUAL_TIMES:.0f} % count as equal). Time: fastest call, batch "
            f"of {self.samples}, {self.isa}, threads: {self.threads}."
        )

    def _repr_html_(self) -> str:
        largest = max(point.file_bytes for point in self.points)
        slowest = max(point.seconds for point in self.points)
        lines: list[list[str | html.Bar]] = []
        for point in self.points:
            name, score, memory, file, milliseconds, best = _cells(point)
            lines.append(
                [
                    name,
                    score,
                    html.Bar(memory, point.bytes / largest),
                    html.Bar(file, point.file_bytes / largest),
                    html.Bar(milliseconds, point.seconds / slowest, "orange"),
                    best,
                ]
            )
        return html.page(html.table(_HEADER, lines, right={1}), f"<p>{self._legend()}</p>")


_HEADER = ("setting", "score", "memory KiB", "file KiB", "ms a call", "")


def _cells(point: Point) -> tuple[str, ...]:
    return (
        point.name,
        f"{point.score:.6g}",
        f"{point.bytes / 1024:.1f}",
        f"{point.file_bytes / 1024:.1f}",
        f"{1e3 * point.seconds:.3f}",
        "*" if point.best else "",
    )


@held_back()
def pareto_front(
    model: nn.Module,
    data: Data | None = None,
    *,
    evaluate: Evaluate,
    bits: float | Mapping[Any, Any] | Iterable[Bits] = (8, 6, 5, 4, 3, 2),
    grids: Grid | Iterable[Grid] = ("linear",),
    inputs: Data | None = None,
    rounds: int = 20,
    progress: bool = True,
    **options: Unpack[SharedOptions],
) -> ParetoFront:
    """Accuracy, size and time of the float model and of it quantized at every setting.

    Nothing is chosen here by the scores. If you choose a setting by them, let ``evaluate`` use
    held-out training data.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
        >>> x = torch.randn(32, 64)
        >>> wanted = model(x).detach()
        >>> found = octavo.pareto_front(
        ...     model, x, evaluate=lambda m: -float((m(x) - wanted).norm()), bits=(8, 4), rounds=2,
        ...     progress=False,
        ... )
        >>> [point.name for point in found.points]
        ['float', '8 bits', '4 bits']

    Args:
        model: a float model; it stays as it is.
        data: batches to calibrate with, as for `octavo.quantize`.
        evaluate: a function from a model to its score; higher is better. It is called without
            gradients.
        bits: whatever `octavo.quantize` takes for ``bits``, one after the other.
        grids: for each of ``bits``.
        inputs: one batch for the timed calls. Default: the first of data; needed without data.
        rounds: timed calls of each model; they take turns, the fastest counts.
        progress: whether to show a bar on stderr.
        **options: more arguments of `octavo.quantize`, for all settings: those of
            `octavo.types.SharedOptions`.

    Raises:
        TypeError: ``evaluate`` is no callable.
        ValueError: an unknown grid, neither data nor inputs, no rounds. Others as
            `octavo.quantize`.
    """
    own = ("model", "data", "evaluate", "bits", "grids", "inputs", "rounds", "progress")
    check_names("pareto_front", options, [*own, *SharedOptions.__annotations__])
    if not callable(evaluate):
        raise TypeError(
            "pareto_front: evaluate must be a callable from a model to a score, got "
            f"{describe(evaluate)}. Use for example evaluate=accuracy."
        )
    if isinstance(grids, str):
        grids = (grids,)
    widths = [bits] if isinstance(bits, (int, float, Mapping)) else list(bits)
    settings = [(width, grid) for grid in grids for width in widths]
    if not settings:
        raise ValueError(
            "pareto_front: bits and grids must name a setting, got none. Use bits=(8, 4)."
        )
    for _, grid in settings:
        if grid not in GRIDS:
            raise ValueError(
                f"pareto_front: grids must be among {', '.join(GRIDS)}, got {describe(grid)}. "
                'Use for example grids=("linear", "nf").'
            )
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(
            f"pareto_front: rounds must be at least 1, got {describe(rounds)}. Use 20."
        )
    check_model(model)
    kept = None if data is None else Batches(data).source
    reference = copy_model(model).eval()
    call = _call(reference, kept if inputs is None else inputs)
    models: dict[str, nn.Module] = {"float": reference}
    names = _names(settings)
    steps = tqdm(
        zip(names, settings, strict=True), total=len(names), desc="octavo: pareto_front",
        unit="setting", disable=not progress, leave=False,
    )  # fmt: skip
    for name, (width, grid) in steps:
        models[name] = quantize(model, width, kept, grid=grid, progress=False, **options)
    with torch.no_grad():
        scores = {name: float(let_through(evaluate, one)) for name, one in models.items()}
    times = _fastest(models, call, rounds)
    points = [
        Point(
            name,
            scores[name],
            tensor_bytes(one) if name == "float" else resident_bytes(one),
            tensor_bytes(one) if name == "float" else stored_bytes(one),
            times[name],
        )
        for name, one in models.items()
    ]
    marked = [
        dataclasses.replace(p, best=not any(_beats(other, p) for other in points)) for p in points
    ]
    return ParetoFront(tuple(marked), library.isa(), torch.get_num_threads(), call.samples)


def _names(settings: Sequence[tuple[Any, str]]) -> list[str]:
    """The name of a row; numbers distinguish rows that would have the same name."""
    several = len({grid for _, grid in settings}) > 1 or settings[0][1] != "linear"
    names: list[str] = []
    for width, grid in settings:
        if isinstance(width, (int, float)):
            text = f"{width} bits"
        elif isinstance(width, tuple):
            text = f"{width[0]} bits, activations {width[1]}"
        elif isinstance(width, Mapping):
            text = ", ".join(f"{getattr(k, '__name__', k)}: {v}" for k, v in width.items())
            text = text if len(text) <= 40 else text[:37] + "..."
        else:
            text = type(width).__name__
        text = f"{text} {grid}" if several else text
        same = itertools.takewhile(
            lambda t: t in names, (text if n == 1 else f"{text} ({n})" for n in itertools.count(1))
        )
        count = len(list(same))
        names.append(text if count == 0 else f"{text} ({count + 1})")
    return names


def _call(model: nn.Module, data: object) -> Call:
    if data is None:
        raise ValueError(
            "pareto_front: inputs must be a batch to time calls with where there is no data, got "
            "None. Pass inputs=batch."
        )
    return Batches(data, samples=1).recorded(model)[0]


def _fastest(models: Mapping[str, nn.Module], call: Call, rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each model; they take turns, so that load hits all alike."""
    best = dict.fromkeys(models, float("inf"))
    with torch.inference_mode():
        for _ in range(rounds + 1):  # The first warms up.
            for name, model in models.items():
                start = time.perf_counter()
                let_through(model, *call.args, **call.kwargs)
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _beats(a: Point, b: Point) -> bool:
    """Whether a is as good as b in everything, and better in something."""
    faster = a.seconds * (1 + EQUAL_TIMES) < b.seconds
    as_fast = a.seconds <= b.seconds * (1 + EQUAL_TIMES)
    as_good = a.score >= b.score and a.bytes <= b.bytes and a.file_bytes <= b.file_bytes
    better = a.score > b.score or a.bytes < b.bytes or a.file_bytes < b.file_bytes or faster
    return as_good and as_fast and better
