"""Fake quantization with given steps: values rounded as the integer model will store them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops import fake_quantize_checks as checks
from octavo.ops import fake_quantize_formula as formula

__all__ = ["fake_quantize"]


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
    if not torch.compiler.is_compiling():
        checks.check_scales(scale, "fake_quantize: scale")
        if zero_point is not None:
            checks.check_zero_points(zero_point, qmin, qmax, "fake_quantize: zero_point")
    options = formula.Options(qmin, qmax, number, group_size, relu)
    result: Tensor = _FakeQuantize.apply(values, scale, zero_point, options)  # type: ignore[no-untyped-call]
    return result if result.dtype is x.dtype else result.to(x.dtype)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        options: formula.Options,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.steps, ctx.relu = formula.steps(scale, zero_point, options), options.relu
        return formula.quantized(x, ctx.steps, options.relu)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return formula.gradient(dy, x, ctx.steps, ctx.relu), None, None, None
