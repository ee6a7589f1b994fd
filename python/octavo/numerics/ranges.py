"""Range rules: from a streaming histogram of one value to the affine parameters that store it.

Every rule is a pure function of a `Histogram`, and a histogram is a function of the multiset of
values alone, so the result does not depend on how the data is split into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.numerics.scheme import MIN_SCALE, QParams

__all__ = [
    "RULES",
    "Histogram",
    "huber",
    "minmax",
    "mse",
    "percentile",
    "qparams_of_range",
    "spanning",
    "squared_error",
    "typical",
]

MAX_BINS = 4096
"""Bins of a histogram. At least half are in use, so an 8-bit step spans 8 bins or more."""

_MIN_EXPONENT = -126  # 2^126 is a finite float32: values are scaled by 2^-exponent.
_COARSE = tuple(i / 100 for i in range(100, 4, -5))  # 1.00, 0.95, ... 0.05
_FINE = tuple(1 + i / 100 for i in (0, -4, -3, -2, -1, 1, 2, 3, 4))
_LIMIT = 0.25  # Of the root mean square: where `huber` stops squaring.
_RARE = 0.01  # Share of the samples whose extremes `typical` takes for rarities.
_PERCENTILE = 0.99999  # Below 99.999 % vision transformers collapse (Brevitas sweep: 7 % at 99.9).


@dataclass
class Histogram:
    """Exact counts of float values in bins whose width is a power of two.

    Bin i holds the values in [i * 2^exponent, (i + 1) * 2^exponent); ``counts[j]`` belongs to bin
    ``first + j``. The exponent is the smallest at which the hull of all values and zero needs at
    most `MAX_BINS` bins, hence it is a function of the extremes alone. When the hull grows, pairs
    of bins merge, which keeps the counts exact.

    Attributes:
        low, high: extremes of the values seen.
        count: how many values were seen.
        samples: histograms of the smallest and of the largest value of each sample; None where
            nobody told samples apart.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    exponent: int = _MIN_EXPONENT
    first: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    samples: tuple[Histogram, Histogram] | None = None

    @property
    def width(self) -> float:
        """Width of a bin, 2^exponent."""
        return math.ldexp(1.0, self.exponent)

    def update(
        self, low: float, high: float, count: int, count_bins: Callable[[int, int, int], Tensor]
    ) -> None:
        """Add values to the histogram; where they need it, bins are joined to wider ones.

        Args:
            low: the smallest of the values, finite.
            high: the largest of the values, finite.
            count: how many there are.
            count_bins: called as ``count_bins(exponent, first, bins)``, returns an int64 tensor
                [bins]: how many of the values lie in each of the bins ``first`` to
                ``first + bins - 1``, of width 2^exponent.
        """
        if count == 0:
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += count
        exponent = exponent_of_range(self.low, self.high)
        first, last = _bin(min(self.low, 0.0), exponent), _bin(max(self.high, 0.0), exponent)
        counts = count_bins(exponent, first, last - first + 1).to(torch.int64)
        old = torch.arange(self.first, self.first + self.counts.numel())
        counts.index_add_(0, (old >> (exponent - self.exponent)) - first, self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts

    def edges(self) -> Tensor:
        """float64 [bins + 1]: the edges of the bins."""
        bins = self.counts.numel()
        return (torch.arange(bins + 1, dtype=torch.float64) + self.first) * self.width

    def centers(self) -> Tensor:
        """float64 [bins]: the centres of the bins."""
        return self.edges()[:-1] + 0.5 * self.width

    def filled(self) -> tuple[Tensor, Tensor]:
        """float64 values and how often each was seen: centres of bins, inside of the extremes."""
        bins = self.counts.nonzero().flatten()
        values = self.centers()[bins].clamp(*_extremes(self))
        return values, self.counts[bins].to(torch.float64)

    def clamped(self, low: float, high: float) -> Histogram:
        """The histogram of the same values with those beyond low and high moved there."""
        if low <= self.low and self.high <= high:
            return self
        values, counts = self.filled()
        values = values.clamp(low, high)
        result = Histogram()

        def count_bins(exponent: int, first: int, bins: int) -> Tensor:
            index = torch.floor(values * math.ldexp(1.0, -exponent)).to(torch.int64)
            index = (index - first).clamp(0, bins - 1)
            return torch.zeros(bins, dtype=torch.float64).index_add_(0, index, counts)

        lowest, highest = (min(max(end, low), high) for end in (self.low, self.high))
        result.update(lowest, highest, self.count, count_bins)
        return result


def exponent_of_range(low: float, high: float) -> int:
    """Smallest exponent at which the hull of low, high and zero needs at most `MAX_BINS` bins."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return _MIN_EXPONENT
    exponent = max(math.frexp(high - low)[1] - MAX_BINS.bit_length(), _MIN_EXPONENT)
    while _bin(high, exponent) - _bin(low, exponent) >= MAX_BINS:
        exponent += 1
    return exponent


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def qparams_of_range(low: float, high: float, bits: int = 8) -> QParams:
    """Affine parameters whose codes 0 .. 2^bits - 1 span [low, high], widened to hold zero exactly.

    scale = (high - low) / (2^bits - 1), at least `MIN_SCALE`; zero_point = -low / scale to the
    nearest code.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    qmax = 2**bits - 1
    scale = _float32(max((high - low) / qmax, MIN_SCALE))
    return QParams(scale, min(max(round(-low / scale), 0), qmax), bits)


def spanning(parameters: Sequence[QParams]) -> QParams:
    """Parameters whose codes reach what any of those given reach; those themselves if they do."""
    lows = [-p.zero_point * p.scale for p in parameters]
    highs = [(p.qmax - p.zero_point) * p.scale for p in parameters]
    for p, low, high in zip(parameters, lows, highs, strict=True):
        if low == min(lows) and high == max(highs):
            return p
    return qparams_of_range(min(lows), max(highs), max(p.bits for p in parameters))


def minmax(histogram: Histogram, bits: int = 8) -> QParams:
    """The whole range that was seen. Nothing is clipped."""
    return qparams_of_range(*_extremes(histogram), bits)


def percentile(histogram: Histogram, bits: int = 8) -> QParams:
    """The bin edges outside of which at most 0.001 % of the values lie on either side."""
    low, high = _extremes(histogram)
    allowed = math.floor(histogram.count * (1.0 - _PERCENTILE))
    edges = histogram.edges()
    below = histogram.counts.cumsum(0)
    above = histogram.count - below
    # The lowest edge is the first whose bin would exceed what may be cut off; likewise the highest.
    start = int((below > allowed).nonzero()[0])
    stop = int((above <= allowed).nonzero()[0]) + 1
    return qparams_of_range(max(low, float(edges[start])), min(high, float(edges[stop])), bits)


def mse(histogram: Histogram, bits: int = 8) -> QParams:
    """The clip range between bin edges with the smallest mean squared quantization error.

    Minimises sum_i n_i (c_i - Q(c_i))^2 over the clip ends, c_i the bin centres: first both ends
    shrink together, then each alone, each time from coarse to fine steps.
    """
    return _search(histogram, bits, lambda errors, _step, _usual: errors.square())


def huber(histogram: Histogram, bits: int = 8) -> QParams:
    """As `mse`, but errors beyond a quarter of the values' root mean square count linearly.

    A handful of giant values, from six images in a thousand, then does not coarsen the steps of all
    others: on MobileNetV2 the squared error of the logits halves. Below that limit lie all rounding
    errors and the clipped tails of ordinary distributions. The loss is Huber's, "Robust Estimation
    of a Location Parameter" (1964).
    """

    def loss(errors: Tensor, step: Tensor, usual: Tensor) -> Tensor:
        limit = (_LIMIT * usual).maximum(step / 2)
        return torch.where(errors <= limit, errors.square(), limit * (2 * errors - limit))

    return _search(histogram, bits, loss)


def typical(histogram: Histogram, bits: int = 8) -> QParams:
    """As `mse`, but a value beyond what 99 of 100 samples reach counts as if it only reached that.

    A giant in one image of a thousand then does not coarsen the steps of all the others, while
    what every sample holds is kept, be it in a single position: the few giant values of
    transformers, on which all their tokens depend, are one in ten thousand values. Without
    knowledge of samples it is `mse`.
    """
    if histogram.samples is not None:
        lows, highs = histogram.samples
        histogram = histogram.clamped(-_reached(lows, -1), _reached(highs, 1))
    return mse(histogram, bits)


def _search(
    histogram: Histogram, bits: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> QParams:
    """The candidate with the smallest sum of ``loss(|error|, step, root mean square)``."""
    low, high = _extremes(histogram)
    if low == high:
        return qparams_of_range(low, high, bits)
    centers, weights = histogram.filled()
    usual = ((centers.square() * weights).sum() / weights.sum()).sqrt()

    def total(parameters: list[QParams]) -> Tensor:
        """float64 [candidates]: losses of the quantized centres, weighted."""
        errors, scale = _errors(centers, parameters)
        return (loss(errors, scale, usual) * weights).sum(1)

    def snap(value: float, end: float) -> float:
        """The bin edge next to value, away from zero, never beyond the extreme seen."""
        edge = math.ceil(abs(value) / histogram.width) * histogram.width
        return math.copysign(min(edge, abs(end)), end)

    best = (low, high)
    for lows, highs in ((True, True), (True, False), (False, True)):
        for ratios in (_COARSE, _FINE):
            base = best
            candidates = [
                (
                    min(snap(base[0] * r, low), 0.0) if lows else base[0],
                    max(snap(base[1] * r, high), 0.0) if highs else base[1],
                )
                for r in ratios
            ]
            parameters = [qparams_of_range(*c, bits) for c in candidates]
            best = candidates[int(total(parameters).argmin())]
    return qparams_of_range(*best, bits)


def _errors(values: Tensor, parameters: list[QParams]) -> tuple[Tensor, Tensor]:
    """float64 [candidates, values] and [candidates, 1]: sizes of rounding errors, and steps."""
    scale = torch.tensor([p.scale for p in parameters], dtype=torch.float64)[:, None]
    zero = torch.tensor([p.zero_point for p in parameters], dtype=torch.float64)[:, None]
    codes = torch.round(values / scale).maximum(-zero).minimum(parameters[0].qmax - zero)
    return (values - codes * scale).abs(), scale


def squared_error(histogram: Histogram, qparams: QParams) -> float:
    """Mean squared error of the values in the codes of ``qparams``."""
    values, counts = histogram.filled()
    errors, _ = _errors(values, [qparams])
    return float((errors.square() * counts).sum()) / histogram.count


RULES: dict[str, Callable[[Histogram, int], QParams]] = {
    "typical": typical,
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "huber": huber,
}
"""Name of a range rule to its function."""


def clipped(histogram: Histogram, qparams: QParams) -> int:
    """How many values lie in bins whose centre is more than half a step beyond all codes.

    Args:
        histogram: the values.
        qparams: scale, zero point and largest code.
    """
    low = (-qparams.zero_point - 0.5) * qparams.scale
    high = (qparams.qmax - qparams.zero_point + 0.5) * qparams.scale
    centers = histogram.centers()
    return int(histogram.counts[(centers < low) | (centers > high)].sum())


def _extremes(histogram: Histogram) -> tuple[float, float]:
    """The extremes widened to hold zero."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def _reached(extremes: Histogram, sign: int) -> float:
    """The bin edge that all but a hundredth of the samples' extremes, times sign, stay within."""
    allowed = math.floor(extremes.count * _RARE)
    counts, edges = extremes.counts, sign * extremes.edges()
    if sign < 0:
        counts, edges = counts.flip(0), edges.flip(0)
    within = int((counts.cumsum(0) >= extremes.count - allowed).nonzero()[0])
    return max(float(edges[within + 1]), 0.0)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
