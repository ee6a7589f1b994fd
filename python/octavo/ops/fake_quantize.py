"""Fake quantization with given steps: values rounded as the integer model will store them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops import fake_quantize_checks as checks
from octavo.ops import fake_quantize_formula as formula
from octavo.ops import memory_order
from octavo.ops.checks import register_fake

__all__ = ["apply", "empty_result", "fake_quantize", "forward"]


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
    values = checks.check_values(x, "fake_quantize: x")
    checks.check_range(qmin, qmax, zero_point, "fake_quantize")
    number = checks.check_steps(values, axis, group_size, "fake_quantize")
    checks.check_parameter(scale, values, number, group_size, "fake_quantize: scale")
    if zero_point is not None:
        checks.check_parameter(zero_point, values, number, group_size, "fake_quantize: zero_point")
    options = formula.Options(qmin, qmax, number, group_size, relu)
    try:
        y = apply(values, scale, zero_point, options)
    except RuntimeError as error:
        # The kernels read the parameters' values, and refuse bad ones in fewer words.
        checks.check_scales(scale, "fake_quantize: scale")
        if zero_point is not None:
            checks.check_zero_points(zero_point, qmin, qmax, "fake_quantize: zero_point")
        checks.check_transforms("fake_quantize", error)
        raise
    return y if y.dtype is x.dtype else y.to(x.dtype)


def apply(x: Tensor, scale: Tensor, zero_point: Tensor | None, options: formula.Options) -> Tensor:
    """`fake_quantize` of checked arguments."""
    if x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _FakeQuantize.apply(x, scale, zero_point, options)  # type: ignore[no-untyped-call]
        return result
    return forward(x, scale, zero_point, options)


def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, options: formula.Options
) -> Tensor:
    """The values alone, without gradients."""
    if not x.is_cpu:
        return formula.quantized(x, formula.steps(scale, zero_point, options), options.relu)
    o = options
    result: Tensor = torch.ops.octavo.fake_quantize(
        x, scale, zero_point, o.qmin, o.qmax, o.axis, o.group_size, o.relu, o.learned
    )
    return result


class _FakeQuantize(torch.autograd.Function):
    """Saves one bit a value on the CPU: x may then be freed, and backward reads a third less."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        options: formula.Options,
    ) -> Tensor:
        if not x.is_cpu:
            ctx.save_for_backward(x)
            ctx.steps, ctx.relu = formula.steps(scale, zero_point, options), options.relu
            return formula.quantized(x, ctx.steps, options.relu)
        o = options
        y: Tensor
        y, mask = torch.ops.octavo.fake_quantize_masked(
            x, scale, zero_point, o.qmin, o.qmax, o.axis, o.group_size, o.relu
        )
        ctx.save_for_backward(mask)
        ctx.strides = y.stride()
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        if not dy.is_cpu:
            return formula.gradient(dy, saved, ctx.steps, ctx.relu), None, None, None
        dx: Tensor = torch.ops.octavo.fake_quantize_backward(dy, saved, ctx.strides)
        return dx, None, None, None


@register_fake("octavo::fake_quantize")
def _(
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
def _(
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
