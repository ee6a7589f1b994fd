"""Fake quantization of weights to the levels of a table: power of two, APoT, log, k-means, NF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops import fake_quantize_checks as checks
from octavo.ops import fake_quantize_formula as formula

__all__ = ["fake_quantize_levels"]


def fake_quantize_levels(
    x: Tensor,
    levels: Tensor,
    scale: Tensor,
    *,
    axis: int | None = 0,
    group_size: int = 0,
    learned: bool = False,
    grad_scale: float = 1.0,
    clip: bool = False,
) -> Tensor:
    """``x`` rounded to the nearest of ``levels * scale``.

    >>> import torch
    >>> from octavo import ops
    >>> levels = torch.tensor([-4, -2, -1, 0, 1, 2, 4], dtype=torch.int8)
    >>> ops.fake_quantize_levels(torch.tensor([[0.3, -0.8, 9.0]]), levels, torch.tensor([0.5]))
    tensor([[ 0.5000, -1.0000,  2.0000]])

    The level is the one nearest to t = x * float32(1 / scale); halfway between two it is the lower
    one; NaN stays NaN. The gradient to x is dy, everywhere or with ``clip`` where t lies within the
    table. With ``learned`` scales are used as max(abs(scale), 1.2e-7), and dscale = grad_scale *
    sign(scale) * sum of dy * (level - t) where t lies within the table and dy * level elsewhere.

    Args:
        x: weight [O, ...], as in `fake_quantize`.
        levels: int8, ascending, 2..256 of them: [L], or [ceil(O / 64), L] with one table for 64
            consecutive output channels.
        scale: float32 as in `fake_quantize`.
        axis: 0 for one scale a channel (or group), None for one in all.
        group_size: as in `fake_quantize`.
        learned: whether scale is trained.
        grad_scale: factor of its gradient.
        clip: whether the gradient to x is 0 outside the table's range.

    Source: APoT (arXiv 1909.13144, equations 4 to 7), whose weights' gradient is not clipped.
    """
    where = "fake_quantize_levels"
    values = checks.check_values(x, f"{where}: x")
    if values.dim() == 0:
        raise ValueError(f"{where}: x: expected a weight [O, ...], got rank 0. Add a dimension.")
    number = checks.check_steps(values, axis, group_size, where)
    if number not in (None, 0):
        raise ValueError(f"{where}: axis: expected 0 or None, got {axis}. Levels are for weights.")
    checks.check_parameter(scale, values, number, group_size, f"{where}: scale")
    if not torch.compiler.is_compiling():
        checks.check_levels(levels, values, f"{where}: levels")
        if not learned:
            checks.check_scales(scale, f"{where}: scale")
    factor = checks.check_number(grad_scale, 0.0, 1e30, f"{where}: grad_scale")
    options = formula.Options(
        0, 0, number, group_size, learned=learned, grad_scale=factor, clip=clip
    )
    result: Tensor = _Levels.apply(values, levels, scale, options)  # type: ignore[no-untyped-call]
    return result if result.dtype is x.dtype else result.to(x.dtype)


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, levels: Tensor, scale: Tensor, options: formula.Options
    ) -> Tensor:
        ctx.save_for_backward(x, levels, scale)
        ctx.options = options
        return formula.levels_of(x, levels, formula.steps(scale, None, options))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, levels, scale = ctx.saved_tensors
        s = formula.steps(scale, None, ctx.options)
        dx, to_scale = formula.level_gradients(dy, x, levels, s, ctx.options.clip)
        dscale = None
        if ctx.options.learned:
            to_scale = ctx.options.grad_scale * torch.where(scale < 0, -to_scale, to_scale)
            dscale = to_scale.float()
        return dx, None, dscale, None
