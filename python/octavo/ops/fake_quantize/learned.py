"""Fake quantization whose steps are trained: LSQ, and with zero points LSQ+."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops.checks import register_fake
from octavo.ops.fake_quantize import checks, formula
from octavo.ops.fake_quantize.codes import note
from octavo.ops.fake_quantize.plain import empty_result

__all__ = ["fake_quantize_learned", "fake_quantize_learned_watched"]


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

    Scales are used as s = max(abs(scale), 2^-126), zero points as z = rne(zero_point) clamped to
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
    # As in `fake_quantize`, checks with full messages run once the kernels refuse.
    error: Exception | None = None
    try:
        if x.is_cpu and x.dtype is not torch.float64 and 0.0 <= grad_scale <= 1e30:
            return _apply(x, scale, zero_point, qmin, qmax, axis, group_size, relu, grad_scale)
    except (AttributeError, RuntimeError, TypeError, ValueError) as refused:
        error = refused
    where = "fake_quantize_learned"
    values = checks.check_values(x, f"{where}: x")
    checks.check_range(qmin, qmax, zero_point, where)
    number = checks.check_steps(values, axis, group_size, where)
    checks.check_parameter(scale, values, number, group_size, f"{where}: scale")
    if zero_point is not None:
        checks.check_parameter(zero_point, values, number, group_size, f"{where}: zero_point")
    factor = checks.check_number(grad_scale, 0.0, 1e30, f"{where}: grad_scale")
    if error is not None:
        checks.check_transforms(where, error)
        raise error
    y = _apply(values, scale, zero_point, qmin, qmax, number, group_size, relu, factor)
    return y.to(x.dtype)


def fake_quantize_learned_watched(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    grad_scale: float = 1.0,
    relu: bool = False,
) -> tuple[Tensor, bool]:
    """`fake_quantize_learned` with one step for all values, and whether all of these are finite.

    The kernel finds out while it rounds, in the same pass. Not under torch.compile.

    >>> import torch
    >>> from octavo import ops
    >>> x, scale = torch.tensor([1.2, float("inf")]), torch.tensor([1.0])
    >>> ops.fake_quantize_learned_watched(x, scale, qmin=0, qmax=3)
    (tensor([1., 3.]), False)

    Args:
        x: floating-point tensor of any shape.
        scale: float32 [1] or [], one step.
        zero_point: of the shape of ``scale``; None: 0.
        qmin: smallest code.
        qmax: largest code.
        grad_scale: factor of the gradients to scale and zero point.
        relu: whether max(x, 0) is taken first.
    """
    if x.is_cpu and x.dtype is not torch.float64 and 0.0 <= grad_scale <= 1e30:
        seen: list[bool] = []
        with contextlib.suppress(AttributeError, RuntimeError, TypeError, ValueError):
            y: Tensor = _Learned.apply(  # type: ignore[no-untyped-call]
                x, scale, zero_point, (qmin, qmax, None, 0, relu), grad_scale, seen
            )
            return y, seen[0]
    y = fake_quantize_learned(
        x, scale, zero_point, qmin=qmin, qmax=qmax, grad_scale=grad_scale, relu=relu
    )
    return y, bool(torch.isfinite(x).all())


def _apply(  # noqa: PLR0917 (the operator's own order)
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    relu: bool,
    grad_scale: float,
) -> Tensor:
    if torch.is_grad_enabled() or not x.is_cpu:
        y: Tensor = _Learned.apply(  # type: ignore[no-untyped-call]
            x, scale, zero_point, (qmin, qmax, axis, group_size, relu), grad_scale
        )
    else:
        y = torch.ops.octavo.fake_quantize(
            x, scale, zero_point, qmin, qmax, axis, group_size, relu, True
        )
    return y


_Given = tuple[int, int, "int | None", int, bool]
"""qmin, qmax, axis, group_size, relu."""


def _learned(options: _Given) -> formula.Options:
    return formula.Options(*options)._replace(learned=True)


class _Learned(torch.autograd.Function):
    """Saves x: the step's gradient needs every value's distance from its code."""

    @staticmethod
    def forward(  # noqa: PLR0917 (the operator's own order)
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        options: _Given,
        grad_scale: float,
        seen: list[bool] | None = None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.options, ctx.grad_scale = options, grad_scale
        if x.is_cpu:
            note(ctx, x, scale, zero_point, (*options[:4], True))
            y: Tensor
            if seen is None:
                y = torch.ops.octavo.fake_quantize(x, scale, zero_point, *options, True)
            else:
                y, finite = torch.ops.octavo.fake_quantize_watched(
                    x, scale, zero_point, options[0], options[1], options[4]
                )
                seen.append(bool(finite))
            return y
        s = formula.steps(scale, zero_point, _learned(options))
        return formula.quantized(x, s, options[4])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        factor = ctx.grad_scale
        if dy.is_cpu:
            dx, dscale, dzero = torch.ops.octavo.fake_quantize_learned_backward(
                dy, x, scale, zero_point, *ctx.options, factor
            )
            return dx, dscale, None if zero_point is None else dzero, None, None, None
        s = formula.steps(scale, zero_point, _learned(ctx.options))
        dx, to_scale, to_zero = formula.learned_gradients(dy, x, s, ctx.options[4])
        dscale = (factor * torch.where(scale < 0, -to_scale, to_scale)).float()
        dzero = None if zero_point is None else (factor * to_zero).float()
        return dx, dscale, dzero, None, None, None


@register_fake("octavo::fake_quantize_watched")
def _(  # noqa: PLR0917 (the operator's own order)
    x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int, relu: bool
) -> tuple[Tensor, Tensor]:
    return empty_result(x, 0), x.new_empty(1, dtype=torch.uint8)


@register_fake("octavo::fake_quantize_learned_backward")
def _(  # noqa: PLR0917 (the operator's own order)
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
