"""The error of rounding with each of several scales, for the search for clip ranges."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["clip_error"]


def clip_error(
    x: Tensor,
    scale: Tensor,
    unit: Tensor,
    ends: Tensor,
    importance: Tensor | None = None,
) -> Tensor:
    """float64 [R, S]: sum over a row of importance * (|x - q * scale| / unit)^2.4, within 1e-6.

    q = round(clamp(x / scale, low, high)), halves to even, x / scale as x times the float32
    reciprocal. The same bits on every instruction set.

    Args:
        x: float32 [R, K], finite.
        scale: float32 [R, S] > 0.
        unit: float32 [R] > 0, not below the largest |x| / 2^20.
        ends: float32 [2, R], integers low in -255..0 and high in 0..255.
        importance: float32 [R, K] >= 0; None: 1.
    """
    for name, tensor in (("x", x), ("scale", scale), ("unit", unit), ("ends", ends)):
        checks.as_float32(tensor, f"clip_error: {name}")
    result: Tensor = torch.ops.octavo.clip_error(x, scale, unit, ends, importance)
    return result


@checks.register_fake("octavo::clip_error")
def _(x: Tensor, scale: Tensor, unit: Tensor, ends: Tensor, importance: Tensor | None) -> Tensor:
    return scale.new_empty(scale.shape, dtype=torch.float64)
