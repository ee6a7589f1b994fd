"""Statistics that calibration gathers: ranges and histograms, of finite values only."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["histogram", "minmax", "minmax_per_channel"]


def minmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Range of the finite values, float32 [2] (min, max), and how many are not finite, int64 [1].

    A tensor without finite values gives (+inf, -inf).
    """
    x = checks.as_float32(x, "minmax: x")
    result: tuple[Tensor, Tensor] = torch.ops.octavo.minmax(x.detach())
    return result


@checks.register_fake("octavo::minmax")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(2), x.new_empty(1, dtype=torch.int64)


def minmax_per_channel(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Range of each channel's finite values, and how many of its values are not finite.

    Args:
        x: floating-point tensor.
        axis: dimension of the C channels, may be negative.

    Returns:
        float32 [2, C] (min, max), (+inf, -inf) where a channel has no finite values; int64 [C].
    """
    x = checks.as_float32(x, "minmax_per_channel: x")
    axis = checks.check_axis(axis, x, "minmax_per_channel: axis")
    result: tuple[Tensor, Tensor] = torch.ops.octavo.minmax_per_channel(x.detach(), axis)
    return result


@checks.register_fake("octavo::minmax_per_channel")
def _(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    channels = x.shape[axis]
    return x.new_empty((2, channels)), x.new_empty(channels, dtype=torch.int64)


def histogram(x: Tensor, exponent: int, first: int, bins: int) -> Tensor:
    """Counts, int64 [bins], of ``floor(x / 2^exponent) - first``; the end bins take the rest.

    Args:
        x: floating-point tensor; values that are not finite are skipped.
        exponent: log2 of the bin width, -149..127.
        first: number of the first bin.
        bins: how many bins, 1..2^24.
    """
    x = checks.as_float32(x, "histogram: x")
    checks.check_range(exponent, -149, 127, "histogram: exponent")
    checks.check_range(first, -(2**40), 2**40, "histogram: first")
    checks.check_range(bins, 1, 1 << 24, "histogram: bins")
    result: Tensor = torch.ops.octavo.histogram(x.detach(), exponent, first, bins)
    return result


@checks.register_fake("octavo::histogram")
def _(x: Tensor, exponent: int, first: int, bins: int) -> Tensor:
    return x.new_empty(bins, dtype=torch.int64)
