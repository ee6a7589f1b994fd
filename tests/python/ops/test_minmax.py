"""minmax, minmax_per_channel, histogram: against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo import ops


@pytest.mark.parametrize("count", [0, 1, 3, 64, 1001])
def test_minmax_counts_what_is_not_finite(isa: str, count: int) -> None:
    x = torch.randn(count)
    if count > 2:
        x[0], x[1], x[2] = float("nan"), float("inf"), float("-inf")
    extremes, bad = ops.minmax(x)
    finite = x[torch.isfinite(x)].numpy()
    expected = [finite.min(), finite.max()] if finite.size else [np.inf, -np.inf]
    assert extremes.tolist() == pytest.approx(expected, abs=0)
    assert bad.tolist() == [count - finite.size] and bad.dtype is torch.int64


def test_minmax_per_channel_on_every_axis(isa: str) -> None:
    x = torch.randn(3, 4, 5, 6)
    x[0, 0, 0, 0] = float("nan")
    for axis in (0, 1, 2, 3, -1):
        extremes, bad = ops.minmax_per_channel(x, axis)
        rows = x.movedim(axis, 0).flatten(1)
        expected = [
            rows.nan_to_num(np.inf).amin(1).tolist(),
            rows.nan_to_num(-np.inf).amax(1).tolist(),
        ]
        assert extremes.tolist() == expected
        assert bad.tolist() == rows.isnan().sum(1).tolist()


@pytest.mark.parametrize("exponent", [-6, 0, 3])
def test_histogram_counts_every_finite_value(isa: str, exponent: int) -> None:
    x = torch.randn(2003) * 2.0 ** (exponent + 3)
    x[5] = float("nan")
    counts = ops.histogram(x, exponent, -16, 32)
    finite = x[torch.isfinite(x)].double().numpy()
    bins = np.clip(np.floor(finite / 2.0**exponent) + 16, 0, 31).astype(int)
    assert counts.tolist() == np.bincount(bins, minlength=32).tolist()
    assert torch.equal(ops.histogram(x.view(1, -1).t(), exponent, -16, 32), counts)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: ops.minmax(torch.ones(3, dtype=torch.int32)), TypeError, r"int32.*\.float\(\)"),
        (lambda: ops.minmax_per_channel(torch.ones(3), 1), ValueError, r"-1\.\.0.*got 1"),
        (lambda: ops.histogram(torch.ones(3), 0, 0, 0), ValueError, "bins.*got 0"),
        (lambda: ops.histogram(torch.ones(3), 4000, 0, 8), ValueError, "exponent.*got 4000"),
    ],
    ids=["integers", "axis", "bins", "exponent"],
)
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]


def test_opcheck() -> None:
    x = torch.randn(3, 4, 5)
    torch.library.opcheck(torch.ops.octavo.minmax.default, (x,))
    torch.library.opcheck(torch.ops.octavo.minmax_per_channel.default, (x.transpose(0, 1), 1))
    torch.library.opcheck(torch.ops.octavo.histogram.default, (x, -4, -64, 128))
