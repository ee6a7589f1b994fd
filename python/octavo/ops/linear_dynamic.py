"""Linear layers whose input is quantized in every call, with a range for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["linear_dynamic"]

# Bound once: a look-up in every call took a fraction of a microsecond.
_operator = torch.ops.octavo.linear_dynamic.default


def linear_dynamic(x: Tensor, panel: Tensor, out_features: int) -> Tensor:
    """float32 [..., out_features], contiguous: integer products, each row with its own scale.

    Args:
        x: float32 [..., K] of any strides, rank >= 1.
        panel: what ``pack_weight`` made of the weight [out_features, K].
        out_features: rows of the weight.

    Raises:
        RuntimeError: from a backward pass through the result.
    """
    if x.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Refusing.apply(x, panel, out_features)  # type: ignore[no-untyped-call]
        return result
    result = _operator(x, panel, out_features)
    return result


@checks.register_fake("octavo::linear_dynamic")
def _(x: Tensor, panel: Tensor, out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


class _Refusing(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, panel: Tensor, out_features: int) -> Tensor:
        result: Tensor = torch.ops.octavo.linear_dynamic(x, panel, out_features)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return checks.refuse_gradient(gradient, ctx.shape), None, None
