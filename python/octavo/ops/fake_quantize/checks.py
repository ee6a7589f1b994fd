"""Worded checks that the fake-quantizers share. Values of parameters are read on the CPU only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.errors import describe
from octavo.numerics.scheme import MIN_SCALE
from octavo.ops import checks

__all__ = [
    "check_ascending",
    "check_levels",
    "check_number",
    "check_parameter",
    "check_range",
    "check_steps",
    "check_transforms",
    "check_values",
    "check_zero_points",
]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_values(x: object, where: str) -> Tensor:
    """``x`` as float32, bfloat16 or float16 on any device; float64 is rounded to float32."""
    if isinstance(x, Tensor) and x.dtype in _FLOATS and x.layout is torch.strided:
        return x
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.is_quantized:
        checks.check_tensor(x, where)
    assert isinstance(x, Tensor)
    if x.dtype is torch.float64:
        return x.float()
    raise TypeError(
        f"{where}: expected a floating-point tensor, got {x.dtype}. Convert it with .float()."
    )


def check_range(qmin: object, qmax: object, zero_point: object, where: str) -> None:
    """Raises unless -128 <= qmin < qmax <= 255, with 0 between them where it is the zero point."""
    low, high = (0, 0) if zero_point is None else (-127, 254)
    checks.check_range(qmax, max(low, -127), 255, f"{where}: qmax")
    assert isinstance(qmax, int)
    checks.check_range(qmin, -128, min(high, qmax - 1), f"{where}: qmin")


def check_number(value: object, low: float, high: float, where: str) -> float:
    """``value`` as a float in low .. high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: expected a number, got {describe(value)}. Pass a float.")
    if not low <= value <= high:
        raise ValueError(
            f"{where}: expected a number in {low:g}..{high:g}, got {value}. Choose one of those."
        )
    return float(value)


def check_steps(x: Tensor, axis: object, group_size: object, where: str) -> int | None:
    """``axis`` in 0 .. rank - 1, or None for one step in all; groups have axis 0."""
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(
            f"{where}: group_size: expected an integer, got {describe(group_size)}. Pass 0 for no "
            "groups or a multiple of 16."
        )
    if group_size < 0 or group_size % 16:
        raise ValueError(
            f"{where}: group_size: expected 0 or a multiple of 16, got {group_size}. "
            "Choose 32, 64 or 128."
        )
    if axis is None:
        if not group_size:
            return None
        axis = 0
    number = checks.check_axis(axis, x, f"{where}: axis")
    if group_size and number != 0:
        raise ValueError(
            f"{where}: axis: expected 0 with group_size {group_size}, got {axis}. Groups are cut "
            "from the inputs of each output channel of a weight [O, ...]."
        )
    return number


def check_parameter(
    parameter: object, x: Tensor, axis: int | None, group_size: int, where: str
) -> None:
    """Raises unless ``parameter`` is float32 on x's device with one number a step."""
    if not isinstance(parameter, Tensor):
        checks.check_tensor(parameter, where)
    assert isinstance(parameter, Tensor)
    if parameter.dtype is not torch.float32:
        raise TypeError(
            f"{where}: expected torch.float32, got {parameter.dtype}. Convert it with .float()."
        )
    if parameter.device != x.device:
        raise ValueError(
            f"{where}: expected device {str(x.device)!r} as x, got {str(parameter.device)!r}. "
            "Move it there."
        )
    if axis is None:
        if parameter.numel() != 1:
            raise ValueError(
                f"{where}: expected one number for the whole tensor, got shape "
                f"{list(parameter.shape)}. Pass axis for one number a channel."
            )
        return
    expected = [x.shape[axis]]
    if group_size:
        expected.append(math.ceil(math.prod(x.shape[1:]) / group_size))
    if list(parameter.shape) != expected:
        raise ValueError(
            f"{where}: expected shape {expected}, got {list(parameter.shape)}. Pass one number a "
            f"{'group' if group_size else 'channel'}."
        )


def check_scales(scale: Tensor, where: str) -> None:
    """Raises unless every scale is finite, positive and normal; on the CPU only."""
    if not scale.is_cpu:
        return
    good = torch.isfinite(scale) & (scale >= MIN_SCALE)
    if not bool(good.all()):
        index = [int(i) for i in (~good).nonzero()[0]]
        raise ValueError(
            f"{where}: expected finite positive normal numbers, got {float(scale[tuple(index)])} "
            f"at index {index}. Use a scale of at least 1.2e-38."
        )


def check_zero_points(zero_point: Tensor, qmin: int, qmax: int, where: str) -> None:
    """Raises unless every zero point is an integer in qmin .. qmax; on the CPU only."""
    if not zero_point.is_cpu:
        return
    good = (zero_point >= qmin) & (zero_point <= qmax) & (zero_point == zero_point.round())
    if not bool(good.all()):
        index = [int(i) for i in (~good).nonzero()[0]]
        raise ValueError(
            f"{where}: expected integers in {qmin}..{qmax}, got {float(zero_point[tuple(index)])} "
            f"at index {index}. Zero must be a code, so that 0.0 is exact."
        )


def check_levels(levels: object, x: Tensor, where: str) -> None:
    """Raises unless ``levels`` is int8, [L] or [blocks of 64 channels, L], ascending."""
    if not isinstance(levels, Tensor):
        checks.check_tensor(levels, where)
    assert isinstance(levels, Tensor)
    if levels.dtype is not torch.int8:
        raise TypeError(f"{where}: expected torch.int8, got {levels.dtype}. Round the levels.")
    if levels.device != x.device:
        raise ValueError(
            f"{where}: expected device {str(x.device)!r} as x, got {str(levels.device)!r}. "
            "Move it there."
        )
    blocks = -(-x.shape[0] // 64)
    if levels.dim() == 2 and levels.shape[0] not in (1, blocks):
        raise ValueError(
            f"{where}: expected {blocks} tables for {x.shape[0]} channels, got {levels.shape[0]}. "
            "Pass one table for 64 consecutive channels, or one for all."
        )
    if levels.dim() not in (1, 2) or not 2 <= levels.shape[-1] <= 256:
        raise ValueError(
            f"{where}: expected shape [levels] or [blocks, levels] with 2..256 levels, got "
            f"{list(levels.shape)}. Pass a table of grids."
        )


def check_ascending(levels: Tensor, where: str) -> None:
    """Raises unless the levels of each table ascend; on the CPU only."""
    if levels.is_cpu and bool((levels[..., 1:] < levels[..., :-1]).any()):
        raise ValueError(
            f"{where}: expected levels in ascending order, got {levels.tolist()!r:.80}. Sort them."
        )


def check_transforms(where: str, error: Exception) -> None:
    """Raises NotImplementedError if ``error`` is torch's, about a transform of torch.func."""
    if "functorch" in str(error) or "vmap" in str(error):
        raise NotImplementedError(
            f"{where}: expected a plain call, got one under a transform of torch.func. "
            "Call it outside of vmap, grad and jvp."
        ) from error
