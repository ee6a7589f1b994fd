"""Worded checks that the operators share, and the refusal of gradients.

C++ repeats what memory safety needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from octavo.errors import describe
from octavo.numerics.scheme import MIN_SCALE

__all__ = [
    "as_float32",
    "check_bits",
    "check_dtype",
    "check_scales",
    "check_tensor",
    "is_float32",
    "needs_refusal",
]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(x: object, where: str) -> None:
    """Raises unless ``x`` is a dense tensor on the CPU."""
    if not isinstance(x, Tensor):
        kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
        raise TypeError(
            f"{where}: expected a torch.Tensor, got {kind}. Convert it with torch.as_tensor."
        )
    if x.is_nested:
        kind = "a nested tensor"
    elif x.is_quantized:
        kind = f"a quantized tensor ({x.dtype})"
    elif x.layout is not torch.strided:
        kind = f"layout {x.layout}"
    elif x.is_meta:
        kind = "a meta tensor, which has no data"
    else:
        if x.device.type != "cpu":
            raise ValueError(
                f"{where}: expected a tensor on device 'cpu', got one on {str(x.device)!r}. "
                "Move it with .cpu()."
            )
        return
    raise TypeError(
        f"{where}: expected a dense tensor (layout torch.strided) on the CPU, got {kind}. "
        "Convert it with .to_dense(), .dequantize() or real data."
    )


def is_float32(x: object) -> bool:
    """Whether ``x`` is a dense float32 tensor on the CPU."""
    if not isinstance(x, Tensor) or x.dtype is not torch.float32:
        return False
    return x.layout is torch.strided and x.is_cpu and not x.is_nested


def as_float32(x: object, where: str) -> Tensor:
    """``x`` as a dense float32 tensor on the CPU; other floats are converted, the rest refused."""
    if isinstance(x, Tensor):
        if is_float32(x):
            return x
        check_tensor(x, where)
        if x.dtype in _FLOATS:
            return x.float()
        raise TypeError(
            f"{where}: expected a floating-point tensor, got {x.dtype}. Convert it with .float()."
        )
    check_tensor(x, where)
    raise AssertionError("unreachable")


def check_dtype(x: object, dtype: torch.dtype, where: str) -> None:
    """Raises unless ``x`` is a dense CPU tensor of ``dtype``."""
    check_tensor(x, where)
    assert isinstance(x, Tensor)
    if x.dtype is not dtype:
        raise TypeError(f"{where}: expected {dtype}, got {x.dtype}. Convert it with .to({dtype}).")


def check_bits(bits: object, where: str) -> None:
    """Raises unless ``bits`` is an integer in 2..8."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{where}: expected an integer, got {describe(bits)}. Pass 2..8.")
    if not 2 <= bits <= 8:
        raise ValueError(f"{where}: expected 2..8, got {bits}. Choose a width in that range.")


def check_scales(scale: Tensor, length: int, where: str, signed: bool = False) -> None:
    """Raises unless ``scale`` is float32 [length], finite, normal and, unless signed, positive."""
    check_dtype(scale, torch.float32, where)
    if scale.dim() != 1 or scale.shape[0] != length:
        raise ValueError(
            f"{where}: expected shape [{length}], got {list(scale.shape)}. "
            "Pass one scale a channel."
        )
    if scale.requires_grad:
        raise ValueError(f"{where}: expected no gradient, got requires_grad=True. Detach it.")
    size = scale.abs() if signed else scale
    good = torch.isfinite(scale) & (size >= MIN_SCALE)
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        kind = "normal" if signed else "positive normal"
        raise ValueError(
            f"{where}: expected finite {kind} numbers, got {float(scale[index])} at index {index}. "
            "Use a scale of at least 1.2e-38."
        )


def check_scale(scale: object, where: str) -> None:
    """Raises unless ``scale`` is a finite positive number that is normal in float32."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{where}: expected a number, got {describe(scale)}. Pass a float.")
    if not MIN_SCALE <= scale <= torch.finfo(torch.float32).max:
        raise ValueError(
            f"{where}: expected a finite positive number that is normal in float32, got {scale}. "
            "Use a scale of at least 1.2e-38."
        )


def check_range(value: object, low: int, high: int, where: str) -> None:
    """Raises unless ``value`` is an integer in low..high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}: expected an integer, got {describe(value)}. Pass {low}..{high}.")
    if not low <= value <= high:
        raise ValueError(
            f"{where}: expected {low}..{high}, got {value}. Choose a number in that range."
        )


def check_axis(axis: object, x: Tensor, where: str) -> int:
    """``axis`` as a number in 0 .. rank - 1."""
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"{where}: expected an integer, got {describe(axis)}. Pass a dimension.")
    if not -x.dim() <= axis < x.dim():
        raise ValueError(
            f"{where}: expected {-x.dim()}..{x.dim() - 1} for a tensor of rank {x.dim()}, "
            f"got {axis}. Pass a dimension of the tensor."
        )
    return axis % x.dim()


_Function = TypeVar("_Function", bound=Callable[..., Any])


def register_fake(operator: str) -> Callable[[_Function], _Function]:
    """torch.library.register_fake, which has no types of its own."""
    return cast(Callable[[_Function], _Function], torch.library.register_fake(operator))


# ---- gradients -----------------------------------------------------------------------------------


def needs_refusal(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd would record a call on ``tensors``."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


@torch.library.custom_op("octavo::refuse_gradient", mutates_args=())
def refuse_gradient(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Raises; stands where a gradient would be computed, so that none is silently None."""
    raise RuntimeError(
        "backward: expected layers that can be trained, "
        "got an integer layer, which is for inference only. "
        "Train with octavo.quantize(..., qat=True), or detach its input."
    )


@refuse_gradient.register_fake
def _(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    return gradient.new_empty(shape)
