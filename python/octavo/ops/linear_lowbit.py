"""Linear layers over packed 2..8-bit weights with group scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.errors import describe
from octavo.ops import checks

__all__ = ["linear_lowbit", "linear_lowbit_static"]

# Bound once: a look-up in every call took a fraction of a microsecond.
_operator = torch.ops.octavo.linear_lowbit.default


def linear_lowbit(
    x: Tensor, packed: Tensor, out_features: int, activations: str = "dynamic"
) -> Tensor:
    """float32 [..., out_features], contiguous.

    Results have the same bits for every instruction set, number of threads and batch.

    Args:
        x: float32 [..., in_features] of any strides, rank >= 1.
        packed: what ``pack_lowbit`` made of the weight.
        out_features: rows of the weight.
        activations: "dynamic": each row is quantized to 8 bits with a scale of its own and
            multiplied in integers, exactly within a group; no gradient. "float": levels are
            multiplied in float32; the gradient is that of the dequantized weight.

    Raises:
        ValueError: ``activations`` is neither.
        RuntimeError: from a backward pass through a dynamic result.
    """
    if activations not in ("dynamic", "float"):
        raise ValueError(
            "linear_lowbit: activations: expected 'dynamic' or 'float', got "
            f"{describe(activations)}. Use linear_lowbit_static for fixed parameters."
        )
    if x.requires_grad and torch.is_grad_enabled():
        function = _WeightOnly if activations == "float" else _Refusing
        result: Tensor = function.apply(x, packed, out_features)  # type: ignore[no-untyped-call]
        return result
    result = _operator(x, packed, out_features, activations)
    return result


@checks.register_fake("octavo::linear_lowbit")
def _(x: Tensor, packed: Tensor, out_features: int, activations: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def linear_lowbit_static(  # noqa: PLR0917 (the operator's own order)
    x: Tensor, packed: Tensor, out_features: int, scale: float, zero_point: int, max_code: int
) -> Tensor:
    """`linear_lowbit` with given parameters of ``x`` instead of one scale a row.

    Args:
        x: float32 [..., in_features].
        packed: what ``pack_lowbit`` made of the weight.
        out_features: rows of the weight.
        scale: of the input, a normal float32.
        zero_point: 0..max_code.
        max_code: 2 ** bits - 1 of the input, at most 255.

    Raises:
        RuntimeError: from a backward pass through the result.
    """
    checks.check_scale(scale, "linear_lowbit_static: scale")
    checks.check_range(max_code, 1, 255, "linear_lowbit_static: max_code")
    checks.check_range(zero_point, 0, max_code, "linear_lowbit_static: zero_point")
    if checks.needs_refusal((x,)):
        parameters = (scale, zero_point, max_code)
        result: Tensor = _Refusing.apply(x, packed, out_features, *parameters)  # type: ignore[no-untyped-call]
        return result
    result = torch.ops.octavo.linear_lowbit_static(
        x, packed, out_features, scale, zero_point, max_code
    )
    return result


@checks.register_fake("octavo::linear_lowbit_static")
def _(  # noqa: PLR0917 (the operator's own order)
    x: Tensor, packed: Tensor, out_features: int, scale: float, zero_point: int, max_code: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


class _Refusing(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, packed: Tensor, out_features: int, *parameters: Any) -> Tensor:
        result: Tensor
        if parameters:
            result = torch.ops.octavo.linear_lowbit_static(x, packed, out_features, *parameters)
        else:
            result = torch.ops.octavo.linear_lowbit(x, packed, out_features, "dynamic")
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape
        ctx.others = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return checks.refuse_gradient(gradient, ctx.shape), *(None,) * ctx.others


class _WeightOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
        result: Tensor = torch.ops.octavo.linear_lowbit(x, packed, out_features, "float")
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, _ = inputs
        ctx.save_for_backward(packed)
        ctx.in_features = x.shape[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        weight = torch.ops.octavo.dequantize_lowbit(packed, gradient.shape[-1], ctx.in_features)
        return gradient @ weight, None, None
