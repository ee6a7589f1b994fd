"""Fake quantization with given steps: values rounded as the integer model will store them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops import memory_order
from octavo.ops.checks import register_fake
from octavo.ops.fake_quantize import checks, formula
from octavo.ops.fake_quantize.codes import note

__all__ = ["apply", "empty_result", "fake_quantize"]


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int = 0,
    relu: bool = False,
) -> Tensor:
    """``x`` rounded to its nearest multiples of ``scale`` that have a code: (q - z) * scale.

    >>> import torch
    >>> from octavo import ops
    >>> ops.fake_quantize(torch.tensor([-9.0, 0.3, 0.8]), torch.tensor(0.5), qmin=-8, qmax=7)
    tensor([-4.0000,  0.5000,  1.0000])

    ``q = rne(min(max(x * float32(1 / scale), qmin - z), qmax - z)) + z``, as `quantize` computes
    it; NaN stays NaN. The gradient goes to x alone: it passes where the unclamped q lies in qmin ..
    qmax, and is 0 elsewhere and for NaN.

    Args:
        x: float32, bfloat16 or float16 (float32 inside, the same dtype out; float64 is computed in
            float32), any strides; on the CPU kernels compute, on other devices plain torch.
        scale: float32, finite, positive, normal: [1] or [] for the whole tensor, [C] for the
            channels on ``axis``, [C, G] for groups.
        zero_point: float32 integers in qmin .. qmax of scale's shape, or None for 0.
        qmin: smallest code, -128 or more.
        qmax: largest code, up to 255.
        axis: dimension of the channels; None for one scale in all (0 with groups).
        group_size: 0, or a multiple of 16: x [C, ...] is seen as [C, K] and every ``group_size``
            consecutive inputs share a scale, the last group being shorter.
        relu: max(x, 0) before; the gradient is also 0 for x <= 0.

    Raises:
        TypeError, ValueError: as the text says. Values of parameters are checked on the CPU.
    """
    # Kernels check all that they are given, in no time but with short messages: checks with full
    # messages run once the kernels refuse.
    error: Exception | None = None
    try:
        if x.is_cpu and x.dtype is not torch.float64:
            return apply(x, scale, zero_point, qmin, qmax, axis, group_size, relu)
    except (AttributeError, RuntimeError, TypeError, ValueError) as refused:
        error = refused
    values = checks.check_values(x, "fake_quantize: x")
    checks.check_range(qmin, qmax, zero_point, "fake_quantize")
    number = checks.check_steps(values, axis, group_size, "fake_quantize")
    checks.check_parameter(scale, values, number, group_size, "fake_quantize: scale")
    checks.check_scales(scale, "fake_quantize: scale")
    if zero_point is not None:
        checks.check_parameter(zero_point, values, number, group_size, "fake_quantize: zero_point")
        checks.check_zero_points(zero_point, qmin, qmax, "fake_quantize: zero_point")
    if error is not None:
        checks.check_transforms("fake_quantize", error)
        raise error
    return apply(values, scale, zero_point, qmin, qmax, number, group_size, relu).to(x.dtype)


def apply(  # noqa: PLR0917 (the operator's own order)
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    relu: bool,
) -> Tensor:
    """`fake_quantize` without worded checks; axis is in 0 .. rank - 1 on other devices."""
    if x.requires_grad and torch.is_grad_enabled():
        y: Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
            x, scale, zero_point, qmin, qmax, axis, group_size, relu
        )
        return y
    if x.is_cpu:
        y = torch.ops.octavo.fake_quantize(
            x, scale, zero_point, qmin, qmax, axis, group_size, relu, False
        )
        return y
    options = formula.Options(qmin, qmax, axis, group_size, relu)
    return formula.quantized(x, formula.steps(scale, zero_point, options), relu)


class _FakeQuantize(torch.autograd.Function):
    """Saves one bit a value on the CPU: x may then be freed, and backward moves a third less."""

    @staticmethod
    def forward(  # noqa: PLR0917 (the operator's own order)
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        qmin: int,
        qmax: int,
        axis: int | None,
        group_size: int,
        relu: bool,
    ) -> Tensor:
        if not x.is_cpu:
            ctx.save_for_backward(x)
            options = formula.Options(qmin, qmax, axis, group_size, relu)
            ctx.steps, ctx.relu = formula.steps(scale, zero_point, options), relu
            return formula.quantized(x, ctx.steps, relu)
        y: Tensor
        y, mask = torch.ops.octavo.fake_quantize_masked(
            x, scale, zero_point, qmin, qmax, axis, group_size, relu
        )
        ctx.save_for_backward(mask)
        ctx.strides = y.stride()
        note(ctx, x, scale, zero_point, (qmin, qmax, axis, group_size, False))
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        if dy.is_cpu:
            dx: Tensor = torch.ops.octavo.fake_quantize_backward(dy, saved, ctx.strides)
        else:
            dx = formula.gradient(dy, saved, ctx.steps, ctx.relu)
        return dx, None, None, None, None, None, None, None


@register_fake("octavo::fake_quantize")
def _(  # noqa: PLR0917 (the operator's own order)
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    relu: bool,
    learned: bool,
) -> Tensor:
    return empty_result(x, group_size)


@register_fake("octavo::fake_quantize_masked")
def _(  # noqa: PLR0917 (the operator's own order)
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    shape = memory_order.mask_shape(x, axis, group_size)
    return empty_result(x, group_size), x.new_empty(shape, dtype=torch.uint8)


@register_fake("octavo::fake_quantize_backward")
def _(dy: Tensor, mask: Tensor, strides: list[int]) -> Tensor:
    return dy.new_empty_strided(dy.shape, strides)


def empty_result(x: Tensor, group_size: int) -> Tensor:
    """An empty tensor with the strides of a result: x's where it is dense and read in place."""
    if group_size:
        return x.new_empty(x.shape)
    return x.new_empty_strided(x.shape, memory_order.dense_strides(x))
