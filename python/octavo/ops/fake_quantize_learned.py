"""Fake quantization whose steps are trained: LSQ, and with zero points LSQ+."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops import fake_quantize_checks as checks
from octavo.ops import fake_quantize_formula as formula
from octavo.ops.checks import register_fake
from octavo.ops.fake_quantize import empty_result, forward

__all__ = ["fake_quantize_learned"]


def fake_quantize_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int = 0,
    grad_scale: float = 1.0,
    relu: bool = False,
) -> Tensor:
    """`fake_quantize` with gradients to x, to ``scale`` and to ``zero_point``.

    >>> import torch
    >>> from octavo import ops
    >>> step = torch.tensor([0.5], requires_grad=True)
    >>> y = ops.fake_quantize_learned(torch.tensor([0.3, 0.8, 9.0]), step, qmin=-8, qmax=7)
    >>> y.sum().backward()
    >>> y.detach(), step.grad  # 1 - 0.6, 2 - 1.6 and 7
    (tensor([0.5000, 1.0000, 3.5000]), tensor([7.8000]))

    Scales are used as s = max(abs(scale), 1.2e-7), zero points as z = rne(zero_point) clamped to
    qmin .. qmax. With t = x * float32(1 / s), and x inside where the unclamped code lies in qmin ..
    qmax: dx = dy inside, 0 outside; dscale = grad_scale * sign(scale) * sum of dy * (q - z - t)
    inside and dy * (q - z) outside (the sign of 0 is +, and a clamped scale has it too, so that it
    can grow again); dzero_point = -grad_scale * s * sum of dy outside.

    Args:
        x: as in `fake_quantize`.
        scale: float32 as in `fake_quantize`, of any value.
        zero_point: float32 of scale's shape, or None for 0.
        qmin: smallest code, -128 or more; at most 0 without zero points.
        qmax: largest code, up to 255; at least 0 without zero points.
        axis: as in `fake_quantize`.
        group_size: as in `fake_quantize`.
        grad_scale: factor of both parameters' gradients; LSQ's is 1 / sqrt(values * qmax).
        relu: as in `fake_quantize`; for x <= 0 the gradient to x is 0.

    Sources: LSQ (arXiv 1902.08153, equations 3 and 5), LSQ+ (arXiv 2004.09576, equations 4 to 6).
    """
    values = checks.check_values(x, "fake_quantize_learned: x")
    checks.check_range(qmin, qmax, zero_point, "fake_quantize_learned")
    number = checks.check_steps(values, axis, group_size, "fake_quantize_learned")
    checks.check_parameter(scale, values, number, group_size, "fake_quantize_learned: scale")
    if zero_point is not None:
        where = "fake_quantize_learned: zero_point"
        checks.check_parameter(zero_point, values, number, group_size, where)
    factor = checks.check_number(grad_scale, 0.0, 1e30, "fake_quantize_learned: grad_scale")
    options = formula.Options(qmin, qmax, number, group_size, relu, learned=True, grad_scale=factor)
    if not torch.is_grad_enabled():
        y = forward(values, scale, zero_point, options)
    else:
        try:
            y = _Learned.apply(values, scale, zero_point, options)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            checks.check_transforms("fake_quantize_learned", error)
            raise
    return y if y.dtype is x.dtype else y.to(x.dtype)


class _Learned(torch.autograd.Function):
    """Saves x: the step's gradient needs every value's distance from its code."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: formula.Options
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.options = options
        return forward(x, scale, zero_point, options)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        o = ctx.options
        if dy.is_cpu:
            dx, dscale, dzero = torch.ops.octavo.fake_quantize_learned_backward(
                dy, x, scale, zero_point, *o[:5], o.grad_scale
            )
            return dx, dscale, None if zero_point is None else dzero, None
        s = formula.steps(scale, zero_point, o)
        dx, to_scale, to_zero = formula.learned_gradients(dy, x, s, o.relu)
        dscale = (o.grad_scale * torch.where(scale < 0, -to_scale, to_scale)).float()
        return dx, dscale, None if zero_point is None else (o.grad_scale * to_zero).float(), None


@register_fake("octavo::fake_quantize_learned_backward")
def _(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    relu: bool,
    grad_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dzero = scale.new_empty(0 if zero_point is None else scale.shape)
    return empty_result(x, group_size), scale.new_empty(scale.shape), dzero
