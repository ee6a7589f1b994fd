"""Floats to codes and back, for a whole tensor or per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["dequantize", "quantize", "quantize_per_channel"]


def quantize(x: Tensor, scale: float, zero_point: int, max_code: int = 255) -> Tensor:
    """The uint8 codes of ``x``: its multiples of ``scale``, shifted by ``zero_point``.

    ``rne(min(max(x / scale, -zero_point), max_code - zero_point)) + zero_point``, where
    ``x * float32(1 / scale)`` stands for the quotient. NaN gives code 0. Contiguous whatever the
    strides of ``x``.

    Args:
        x: floating-point tensor of any shape.
        scale: real size of one step, a normal float32 > 0.
        zero_point: the code of 0.0, 0..max_code.
        max_code: largest code, 1..255.

    Raises:
        TypeError, ValueError: as the text says.
    """
    x = checks.as_float32(x, "quantize: x")
    checks.check_scale(scale, "quantize: scale")
    checks.check_range(max_code, 1, 255, "quantize: max_code")
    checks.check_range(zero_point, 0, max_code, "quantize: zero_point")
    result: Tensor = torch.ops.octavo.quantize(x.detach(), scale, zero_point, max_code)
    return result


@checks.register_fake("octavo::quantize")
def _(x: Tensor, scale: float, zero_point: int, max_code: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


def quantize_per_channel(x: Tensor, scale: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """The int8 codes of ``x`` with one symmetric scale per entry of dimension ``axis``.

    ``rne(min(max(x * float32(1 / scale[c]), qmin), qmax))``; NaN gives qmin. Contiguous.

    Args:
        x: floating-point tensor.
        scale: float32 [size of axis], finite, positive, normal.
        axis: dimension of the channels, may be negative.
        qmin: smallest code, -128..qmax - 1.
        qmax: largest code, up to 127.
    """
    x = checks.as_float32(x, "quantize_per_channel: x")
    axis = checks.check_axis(axis, x, "quantize_per_channel: axis")
    checks.check_scales(scale, x.shape[axis], "quantize_per_channel: scale")
    checks.check_range(qmax, -127, 127, "quantize_per_channel: qmax")
    checks.check_range(qmin, -128, qmax - 1, "quantize_per_channel: qmin")
    result: Tensor = torch.ops.octavo.quantize_per_channel(x.detach(), scale, axis, qmin, qmax)
    return result


@checks.register_fake("octavo::quantize_per_channel")
def _(x: Tensor, scale: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """float32 ``scale * (q - zero_point)``, what the codes stand for. Contiguous.

    Args:
        q: uint8 codes of any shape.
        scale: real size of one step, a normal float32 > 0.
        zero_point: the code of 0.0, 0..255.
    """
    checks.check_dtype(q, torch.uint8, "dequantize: q")
    checks.check_scale(scale, "dequantize: scale")
    checks.check_range(zero_point, 0, 255, "dequantize: zero_point")
    result: Tensor = torch.ops.octavo.dequantize(q, scale, zero_point)
    return result


@checks.register_fake("octavo::dequantize")
def _(q: Tensor, scale: float, zero_point: int) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)
