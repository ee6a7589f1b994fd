"""Fake quantization of weights to the levels of a table: power of two, APoT, log, k-means, NF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops.checks import register_fake
from octavo.ops.fake_quantize import checks, formula
from octavo.ops.fake_quantize.codes import note
from octavo.ops.fake_quantize.plain import empty_result
from octavo.ops.memory_order import rows_are_outermost

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
    table. With ``learned`` scales are used as max(abs(scale), 2^-126), and dscale = grad_scale *
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
    checks.check_levels(levels, values, f"{where}: levels")
    factor = checks.check_number(grad_scale, 0.0, 1e30, f"{where}: grad_scale")
    options = formula.Options(
        0, 0, number, group_size, learned=learned, grad_scale=factor, clip=clip
    )
    try:
        y: Tensor = _Levels.apply(values, levels, scale, options)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        checks.check_ascending(levels, f"{where}: levels")
        if not learned:
            checks.check_scales(scale, f"{where}: scale")
        checks.check_transforms(where, error)
        raise
    return y if y.dtype is x.dtype else y.to(x.dtype)


class _Levels(torch.autograd.Function):
    """Saves x, which for weights is the parameter itself, where its values are needed at all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, levels: Tensor, scale: Tensor, options: formula.Options
    ) -> Tensor:
        ctx.options = options
        if options.learned or options.clip:
            ctx.save_for_backward(x, levels, scale)
        if not x.is_cpu:
            return formula.levels_of(x, levels, formula.steps(scale, None, options))
        given = (options.axis, options.group_size, options.learned)
        note(ctx, x, scale, None, (-128, 127, *given))  # Levels are codes that jump.
        result: Tensor = torch.ops.octavo.fake_quantize_levels(x, levels, scale, *given)
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        o = ctx.options
        if not (o.learned or o.clip):
            return dy, None, None, None
        x, levels, scale = ctx.saved_tensors
        if dy.is_cpu:
            dx, dscale = torch.ops.octavo.fake_quantize_levels_backward(
                dy, x, levels, scale, o.axis, o.group_size, o.learned, o.grad_scale, o.clip
            )
            return dx if o.clip else dy, None, dscale if o.learned else None, None
        s = formula.steps(scale, None, o)
        dx, to_scale = formula.level_gradients(dy, x, levels, s, o.clip)
        if not o.learned:
            return dx, None, None, None
        to_scale = o.grad_scale * torch.where(scale < 0, -to_scale, to_scale)
        return dx, None, to_scale.float(), None


@register_fake("octavo::fake_quantize_levels")
def _(  # noqa: PLR0917 (the operator's own order)
    x: Tensor, levels: Tensor, scale: Tensor, axis: int | None, group_size: int, learned: bool
) -> Tensor:
    return _empty_result(x, levels, axis, group_size)


@register_fake("octavo::fake_quantize_levels_backward")
def _(  # noqa: PLR0917 (the operator's own order)
    dy: Tensor,
    x: Tensor,
    levels: Tensor,
    scale: Tensor,
    axis: int | None,
    group_size: int,
    learned: bool,
    grad_scale: float,
    clip: bool,
) -> tuple[Tensor, Tensor]:
    dx = _empty_result(x, levels, axis, group_size) if clip else x.new_empty(0)
    return dx, scale.new_empty(scale.shape)


def _empty_result(x: Tensor, levels: Tensor, axis: int | None, group_size: int) -> Tensor:
    by_rows = axis is not None or (levels.dim() == 2 and levels.shape[0] > 1)
    in_place = not by_rows or rows_are_outermost(x)
    return empty_result(x, group_size) if in_place else x.new_empty(x.shape)
