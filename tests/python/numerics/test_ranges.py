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
    squared_error,
    typical,
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


def histogram_of_samples(x: torch.Tensor, parts: int = 1) -> Histogram:
    """x [samples, values], seen in several batches, with the extremes of each sample."""
    histogram = Histogram(samples=(Histogram(), Histogram()))
    for batch in x.chunk(parts):
        add(histogram, batch)
        for found, ends in zip(histogram.samples, (batch.amin(1), batch.amax(1)), strict=True):
            add(found, ends)
    return histogram


def highest(p: QParams) -> float:
    return (p.qmax - p.zero_point) * p.scale


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


def squared(x: torch.Tensor, p: QParams) -> float:
    codes = torch.round(x.double() / p.scale).clamp(-p.zero_point, p.qmax - p.zero_point)
    return float((x.double() - codes * p.scale).square().sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "relu", "outlier"])
def test_mse_is_never_worse_than_the_other_rules(name, bits):
    x = VALUES[name]
    histogram = histogram_of(x)
    best = squared(x, mse(histogram, bits))
    for rule in (minmax, percentile):
        assert best <= squared(x, rule(histogram, bits)) * 1.01


def test_huber_leaves_single_giants_out_and_keeps_many():
    usual = torch.randn(1_000_000, generator=torch.Generator().manual_seed(6))
    for giants, kept in ((5, False), (1000, True)):
        x = torch.cat([usual, torch.full((giants,), 30.0)])
        p = huber(histogram_of(x), 8)
        assert ((p.qmax - p.zero_point) * p.scale > 25) is kept


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_typical_leaves_giants_of_rare_samples_out_and_keeps_those_of_all(parts):
    x = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(8))
    rare, everywhere, beside = x.clone(), x.clone(), x.clone()
    rare[:6, :50] = 40.0  # Six samples of a thousand; each fiftieth of their values would be kept.
    everywhere[:, 0] = 40.0  # One value of a thousand, in every sample.
    beside[:, :500] = 0.0  # Padding.
    beside[:, 999] = -40.0
    at_all = {name: histogram_of_samples(v, parts) for name, v in
              {"rare": rare, "everywhere": everywhere, "beside": beside}.items()}  # fmt: skip
    found = {name: typical(histogram, 8) for name, histogram in at_all.items()}
    assert highest(mse(at_all["rare"], 8)) > 20
    assert 3 < highest(found["rare"]) < 7
    assert highest(found["everywhere"]) > 39
    assert -found["beside"].zero_point * found["beside"].scale < -39
    assert typical(histogram_of_samples(rare), 8) == found["rare"]


def test_typical_spans_powers_of_sounds():
    """Mel powers: most are tiny, each sample has some of 1e5."""
    generator = torch.Generator().manual_seed(9)
    x = 10 ** (5 * torch.rand(200, 800, generator=generator) ** 3)
    p = typical(histogram_of_samples(x), 8)
    assert p.zero_point == 0 and highest(p) > 0.9 * float(x.max())


@pytest.mark.parametrize("name", VALUES)
def test_typical_is_mse_where_samples_are_unknown_or_few(name):
    x = VALUES[name]
    assert typical(histogram_of(x), 8) == mse(histogram_of(x), 8)
    few = x[: len(x) // 2 * 2].view(2, -1)
    assert typical(histogram_of_samples(few), 8) == mse(histogram_of(few), 8)


@pytest.mark.parametrize("low, high", [(-1.0, 0.5), (-9.0, 2.0), (0.0, 0.0), (-1e-3, 9.0)])
def test_clamped_histogram_is_that_of_clamped_values(low, high):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(10))
    found, wanted = histogram_of(x).clamped(low, high), histogram_of(x.clamp(low, high))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert found.count == wanted.count == int(found.counts.sum())
    # Values lie in the middle of the bins that they came from.
    values, counts = found.filled()
    mean = float((values * counts).sum() / found.count)
    assert mean == pytest.approx(float(x.clamp(low, high).double().mean()), abs=2e-3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", [3, 8])
def test_squared_error_is_that_of_the_values(rule, bits):
    x = VALUES["normal"]
    histogram = histogram_of(x)
    p = RULES[rule](histogram, bits)
    assert squared_error(histogram, p) == pytest.approx(squared(x, p) / len(x), rel=0.02)


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
