"""ranges: histograms that do not depend on the split into batches, and the rules on them."""

import math

import pytest
import torch

from octavo.numerics.ranges import (
    MAX_BINS,
    RULES,
    Histogram,
    clipped,
    huber,
    minmax,
    mse,
    percentile,
    qparams_of_range,
)
from octavo.numerics.scheme import MIN_SCALE, QParams


def add(histogram: Histogram, x: torch.Tensor) -> None:
    def count_bins(exponent: int, first: int, bins: int) -> torch.Tensor:
        index = torch.floor(torch.ldexp(x.double(), torch.tensor(-exponent))).long() - first
        assert index.min() >= 0 and index.max() < bins
        return torch.bincount(index.flatten(), minlength=bins)

    histogram.update(float(x.min()), float(x.max()), x.numel(), count_bins)


def histogram_of(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for x in batches:
        add(histogram, x)
    return histogram


VALUES = {
    "normal": torch.randn(20_000, generator=torch.Generator().manual_seed(0)),
    "relu": torch.randn(20_000, generator=torch.Generator().manual_seed(1)).relu(),
    "negative": -torch.rand(10_000, generator=torch.Generator().manual_seed(2)) - 3,
    "outlier": torch.cat(
        [torch.randn(9_999, generator=torch.Generator().manual_seed(3)), torch.tensor([900.0])]
    ),
    "tiny": torch.randn(5_000, generator=torch.Generator().manual_seed(4)) * 1e-30,
    "huge": torch.randn(5_000, generator=torch.Generator().manual_seed(5)) * 5e37,
    "constant": torch.full((100,), 2.5),
    "power of two": torch.tensor([-8.0, 8.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("rule", RULES)
def test_result_does_not_depend_on_the_split(name, rule):
    x = VALUES[name]
    whole = histogram_of(x)
    generator = torch.Generator().manual_seed(7)
    for parts in (2, 3, 50):
        order = torch.randperm(len(x), generator=generator)
        split = histogram_of(*[p for p in x[order].chunk(parts) if len(p)])
        assert torch.equal(split.counts, whole.counts)
        assert (split.exponent, split.first) == (whole.exponent, whole.first)
        assert RULES[rule](split, 8) == RULES[rule](whole, 8)


@pytest.mark.parametrize("name", VALUES)
def test_histogram_is_exact_and_fine(name):
    x = VALUES[name]
    histogram = histogram_of(*x.chunk(4))
    assert int(histogram.counts.sum()) == histogram.count == len(x)
    assert histogram.counts.numel() <= MAX_BINS
    hull = max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
    assert hull / histogram.width > MAX_BINS / 4
    edges = histogram.edges()
    assert float(edges[0]) <= min(float(x.min()), 0.0) and float(edges[-1]) >= max(
        float(x.max()), 0.0
    )


def test_minmax_spans_what_was_seen():
    assert minmax(histogram_of(torch.tensor([-1.0, 3.0])), 2) == QParams(
        float(torch.tensor(4 / 3)), 1, 2
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    "low, high", [(-1.0, 3.0), (0.5, 3.0), (-3.0, -0.5), (-1e-30, 1e-30), (-3e38, 3e38), (0, 0)]
)
def test_every_range_holds_zero_exactly(low, high, bits):
    p = qparams_of_range(low, high, bits)
    assert 0 <= p.zero_point <= p.qmax == 2**bits - 1
    assert p.scale >= float(torch.tensor(MIN_SCALE)) * (1 - 1e-7) and math.isfinite(p.scale)
    assert p.scale == float(torch.tensor(p.scale, dtype=torch.float32))
    if p.scale > 2 * MIN_SCALE:
        assert -p.zero_point * p.scale <= low + 0.51 * p.scale
        assert (p.qmax - p.zero_point) * p.scale >= high - 0.51 * p.scale


def test_percentile_cuts_a_hundred_thousandth_on_each_side():
    x = torch.linspace(0, 1, 1_000_001)
    x[-5:] = 1000.0
    p = percentile(histogram_of(x), 8)
    # 10 values of 1,000,001 may be cut off: the five outliers and no more than a bin of the rest.
    assert p.zero_point == 0 and p.scale * 255 < 1.3
    assert clipped(histogram_of(x), p) == 5


def squared_error(x: torch.Tensor, p: QParams) -> float:
    codes = torch.round(x.double() / p.scale).clamp(-p.zero_point, p.qmax - p.zero_point)
    return float((x.double() - codes * p.scale).square().sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "relu", "outlier"])
def test_mse_is_never_worse_than_the_other_rules(name, bits):
    x = VALUES[name]
    histogram = histogram_of(x)
    best = squared_error(x, mse(histogram, bits))
    for rule in (minmax, percentile):
        assert best <= squared_error(x, rule(histogram, bits)) * 1.01


def test_huber_leaves_single_giants_out_and_keeps_many():
    usual = torch.randn(1_000_000, generator=torch.Generator().manual_seed(6))
    for giants, kept in ((5, False), (1000, True)):
        x = torch.cat([usual, torch.full((giants,), 30.0)])
        p = huber(histogram_of(x), 8)
        assert ((p.qmax - p.zero_point) * p.scale > 25) is kept


def test_mse_of_a_normal_distribution_at_4_bits():
    # The optimal symmetric uniform 16-level quantizer of a unit normal spans about +-2.6 (Max 1960:
    # step 0.335).
    p = mse(histogram_of(VALUES["normal"]), 4)
    assert abs(p.scale - 0.335) < 0.03


def test_zero_only_and_empty_data():
    zeros = histogram_of(torch.zeros(10))
    for rule in RULES.values():
        assert rule(zeros, 8) == qparams_of_range(0.0, 0.0, 8)
    empty = Histogram()
    empty.update(math.inf, -math.inf, 0, lambda *_: torch.zeros(0))
    assert empty.count == 0
