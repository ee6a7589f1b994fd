"""How a tensor's elements lie in memory, for fake kernels: the twin of csrc/ops/memory_order.h."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["dense_strides", "mask_shape", "rows_are_outermost"]


def _order(x: Tensor) -> list[int] | None:
    """Dimensions longer than 1 from the largest stride to the smallest; None: not dense."""
    order = [d for d in range(x.dim()) if x.shape[d] != 1]
    order.sort(key=lambda d: x.stride()[d], reverse=True)
    expected = 1
    for d in reversed(order):
        if x.stride(d) != expected:
            return None
        expected *= x.shape[d]
    return order


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of a result: x's where x is dense, else contiguous ones."""
    if x.is_contiguous() or _order(x) is not None:
        return x.stride()
    return contiguous_strides(x)


def contiguous_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of a contiguous tensor of x's shape."""
    strides, stride = [], 1
    for size in reversed(x.shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def mask_shape(x: Tensor, axis: int | None, group_size: int) -> tuple[int, int]:
    """Shape of the mask of bits: a row for every run that shares a step, starting at a byte."""
    if group_size:
        rows, row = x.shape[0], math.prod(x.shape[1:])
    elif axis is None or x.shape[axis] == 1 or x.numel() == 0:
        rows, row = 1, x.numel()
    else:
        order = _order(x)
        if order is None:
            order = [d for d in range(x.dim()) if x.shape[d] != 1]
        channels = x.shape[axis]
        row = math.prod(x.shape[d] for d in order[order.index(axis % x.dim()) + 1 :])
        rows = x.numel() // row
        if row == 1:
            rows, row = rows // channels, channels
    return rows, (row + 7) // 8


def rows_are_outermost(x: Tensor) -> bool:
    """Whether every entry of dimension 0 is one dense stretch of memory."""
    if x.is_contiguous():
        return True
    order = _order(x)
    return order is not None and (x.shape[0] == 1 or order[0] == 0)
