"""Fake quantization between 0 and a trained clipping value: PACT."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.ops import checks
from octavo.ops.fake_quantize import checks as fake_checks
from octavo.ops.fake_quantize import formula
from octavo.ops.fake_quantize.codes import note
from octavo.ops.fake_quantize.plain import empty_result

__all__ = ["fake_quantize_clipped", "fake_quantize_clipped_watched"]


def fake_quantize_clipped(x: Tensor, alpha: Tensor, *, bits: int) -> Tensor:
    """``x`` clipped to 0 .. abs(alpha) and rounded to 2^bits - 1 equal steps; contains the ReLU.

    >>> import torch
    >>> from octavo import ops
    >>> alpha = torch.tensor([6.0], requires_grad=True)
    >>> y = ops.fake_quantize_clipped(torch.tensor([-1.0, 2.2, 7.0]), alpha, bits=2)
    >>> y.sum().backward()
    >>> y.detach(), alpha.grad
    (tensor([0., 2., 6.]), tensor([1.]))

    It is `fake_quantize` with scale max(abs(alpha / (2^bits - 1)), 2^-126), qmin 0 and qmax 2^bits
    - 1, and other gradients: dx = dy where 0 < x < abs(alpha), else 0; dalpha = sign(alpha) * sum
    of dy where x >= abs(alpha).

    Args:
        x: as in `fake_quantize`.
        alpha: float32 [1] or [], of any value.
        bits: 2..8.

    Source: PACT (arXiv 1805.06085, equations 1 to 3).
    """
    values = fake_checks.check_values(x, "fake_quantize_clipped: x")
    fake_checks.check_parameter(alpha, values, None, 0, "fake_quantize_clipped: alpha")
    checks.check_bits(bits, "fake_quantize_clipped: bits")
    try:
        y: Tensor = _Clipped.apply(values, alpha, bits)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        fake_checks.check_transforms("fake_quantize_clipped", error)
        raise
    return y if y.dtype is x.dtype else y.to(x.dtype)


def fake_quantize_clipped_watched(x: Tensor, alpha: Tensor, *, bits: int) -> tuple[Tensor, bool]:
    """`fake_quantize_clipped`, and whether every value is finite. Not under torch.compile.

    Args:
        x: floating-point tensor of any shape.
        alpha: float32, one number: the upper end of the range.
        bits: width of the codes.
    """
    if x.is_cpu and x.is_floating_point() and x.dtype is not torch.float64:
        seen: list[bool] = []
        with contextlib.suppress(AttributeError, RuntimeError, TypeError, ValueError):
            y: Tensor = _Clipped.apply(x, alpha, bits, seen)  # type: ignore[no-untyped-call]
            return y, seen[0]
    return fake_quantize_clipped(x, alpha, bits=bits), bool(torch.isfinite(x).all())


class _Clipped(torch.autograd.Function):
    """Saves x, as `fake_quantize_learned` does."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, bits: int, seen: list[bool] | None = None
    ) -> Tensor:
        ctx.save_for_backward(x, alpha)
        if not x.is_cpu:
            return formula.clipped(x, alpha, bits)
        top = 2**bits - 1
        scale = alpha.detach() / top
        note(ctx, x, scale, None, (0, top, None, 0, True))
        result: Tensor
        if seen is not None:  # The very same values: a learned step of this scale.
            step = scale.reshape(1)
            result, finite = torch.ops.octavo.fake_quantize_watched(x, step, None, 0, top, False)
            seen.append(bool(finite))
            return result
        result = torch.ops.octavo.fake_quantize_clipped(x, alpha, bits)
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, alpha = ctx.saved_tensors
        if dy.is_cpu:
            dx, dalpha = torch.ops.octavo.fake_quantize_clipped_backward(dy, x, alpha)
            return dx, dalpha, None, None
        dx, to_alpha = formula.clipped_gradients(dy, x, alpha)
        return dx, torch.where(alpha < 0, -to_alpha, to_alpha).float(), None, None


@checks.register_fake("octavo::fake_quantize_clipped")
def _(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    return empty_result(x, 0)


@checks.register_fake("octavo::fake_quantize_clipped_backward")
def _(dy: Tensor, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    return empty_result(x, 0), alpha.new_empty(alpha.shape)
