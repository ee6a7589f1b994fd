"""The narrowest average of widths at which a model reaches the required score."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from octavo.deciding.sensitivity import Sensitivity, sensitivity
from octavo.interrupts import let_through
from octavo.nn.surgery import copy_model
from octavo.reporting.record import attach, record_of
from octavo.types import Data, Evaluate, Grid

__all__ = ["Search"]

_AVERAGES = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0)


class Search:
    """Searches the average of bits by bisection; each average is spent where it helps most.

    Args:
        model: the float model.
        data: batches as for `octavo.quantize`, which can be read more than once.
        evaluate: a model to its score; higher is better.
        quantize: `octavo.quantize` with all options but the widths.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        evaluate: Evaluate,
        quantize: Callable[..., nn.Module],
    ) -> None:
        self.model, self.evaluate, self.quantize = model, evaluate, quantize
        self.data = data
        self.scores: dict[float, float] = {}
        """Average to score, of those that were tried."""

    def result(
        self, bits: int, max_drop: float, grid: Grid, inplace: bool, progress: bool
    ) -> nn.Module:
        """The model of the smallest average whose score is high enough, else the best one.

        Args:
            bits: the largest average to try, in bits a weight.
            max_drop: how far below the float model's score is enough.
            grid: levels, one of `octavo.grids()`.
            inplace: whether the result replaces the given model.
            progress: whether to show progress on stderr.
        """
        wanted = float(let_through(self.evaluate, copy_model(self.model).eval()))
        floor = wanted - max_drop
        found = sensitivity(self.model, self.data, grid=grid, progress=progress)
        averages = [a for a in _AVERAGES if a <= bits]
        low, high = 0, len(averages) - 1
        while low < high:
            middle = (low + high) // 2
            if self._score(averages[middle], found) >= floor:
                high = middle
            else:
                low = middle + 1
        enough = self._score(averages[low], found) >= floor
        best = averages[low] if enough else max(self.scores, key=lambda a: self.scores[a])
        made = self._made(best, found, inplace)
        tried = ", ".join(f"{a} bits {s:.6g}" for a, s in sorted(self.scores.items()))
        note = f"average of {best} bits scores {self.scores[best]:.6g} (float {wanted:.6g}"
        note += f", asked {floor:.6g}); tried: {tried}"
        if self.scores[best] < floor:
            note = f"no average scored as asked; returned anyway: {note}"
        record = record_of(made)
        assert record is not None
        attach(made, replace(record, notes=(*record.notes, note)))
        if progress:
            print(f"octavo: {note}", file=sys.stderr)
        return made

    def _score(self, average: float, found: Sensitivity) -> float:
        if average not in self.scores:
            made = self._made(average, found, False)
            self.scores[average] = float(let_through(self.evaluate, made))
        return self.scores[average]

    def _made(self, average: float, found: Sensitivity, inplace: bool) -> nn.Module:
        """The model quantized with an average of bits."""
        return self.quantize(self.model, found.allocate(average), self.data, inplace=inplace)
