"""Fake-quantized values kept for the backward pass as their codes: one byte a value, not four.

The autograd node that made a fake-quantized tensor knows its steps (`note`). While a layer runs
within `saved_as_codes`, what autograd saves of such a tensor are its codes, from which the backward
pass forms the same bits again. A tensor that was changed since, or that another node made, has no
such node and is saved as it is.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from octavo.ops import memory_order
from octavo.ops.checks import register_fake

__all__ = ["note", "saved_as_codes"]

Options = tuple[int, int, "int | None", int, bool]
"""qmin, qmax, axis, group_size, learned."""


class _Codes(NamedTuple):
    """Codes and the parameters of their steps, copied: an optimizer may move those meanwhile."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    options: Options

    def values(self) -> Tensor:
        y: Tensor = torch.ops.octavo.fake_quantize_values(
            self.codes, self.scale, self.zero_point, *self.options
        )
        return y


class _Steps:
    """What an autograd node knows of the tensor that it made."""

    def __init__(self, scale: Tensor, zero_point: Tensor | None, options: Options) -> None:
        self.scale, self.zero_point, self.options = scale, zero_point, options
        self._made: weakref.ref[Tensor] | None = None
        self._latest: tuple[Tensor, Tensor | None] | None = None

    def codes_of(self, y: Tensor) -> _Codes | None:
        """Codes of ``y``, which this made; None where they would not give back its bits."""
        codes = self._made() if self._made is not None else None
        if codes is None or self._latest is None:
            zero = None if self.zero_point is None else self.zero_point.detach().clone()
            scale = self.scale.detach().clone()
            codes, exact = torch.ops.octavo.fake_quantize_codes(y, scale, zero, *self.options)
            if not exact or codes.stride() != y.stride():
                return None
            self._made, self._latest = weakref.ref(codes), (scale, zero)
        return _Codes(codes, *self._latest, self.options)


class _View(NamedTuple):
    """A view of values that are kept as codes."""

    codes: _Codes
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Whole(NamedTuple):
    """A tensor as it is, and how often it had been changed in place."""

    tensor: Tensor
    version: int


def note(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: Options) -> None:
    """Called by the forward of an autograd.Function: how its first result was fake-quantized."""
    if x.dtype is torch.float32 and not torch.compiler.is_compiling():
        ctx.octavo_steps = _Steps(scale, zero_point, options)


def saved_as_codes(*tensors: Tensor) -> AbstractContextManager[None]:
    """Within it autograd saves the codes of those ``tensors`` that were just fake-quantized.

    It does nothing where hooks for saved tensors are in use already (gradient checkpointing,
    offloading) or forbidden (torch.func), and under torch.compile, which decides itself.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return nullcontext()
    known = [
        (y, steps) for y in tensors if (steps := _steps_of(y)) is not None
    ]  # fmt: skip
    state: Any = torch._C._autograd
    if (
        not known
        or not state._saved_tensors_hooks_is_enabled()
        or state._top_saved_tensors_default_hooks(True) is not None
    ):
        return nullcontext()
    return _hooks(known)


def _steps_of(y: Tensor) -> _Steps | None:
    node = y.grad_fn
    if node is None or type(y) is not Tensor or y.output_nr != 0 or y._version != 0:
        return None
    found = getattr(node, "octavo_steps", None)
    return found if isinstance(found, _Steps) and y.dtype is torch.float32 else None


@contextlib.contextmanager
def _hooks(known: list[tuple[Tensor, _Steps]]) -> Iterator[None]:
    def pack(tensor: Tensor) -> _View | _Whole:
        for y, steps in known:
            if tensor.dtype is y.dtype and tensor.data_ptr() and _share(tensor, y):
                codes = steps.codes_of(y)
                if codes is not None:
                    offset = int(tensor.storage_offset())
                    return _View(codes, tensor.size(), tensor.stride(), offset)
        # Detached: a saved result that held its own node would never be freed.
        return _Whole(tensor.detach(), tensor._version)

    try:
        with saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        known.clear()  # The hooks live as long as what they saved.


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _unpack(saved: _View | _Whole) -> Tensor:
    if isinstance(saved, _Whole):
        if saved.tensor._version != saved.version:
            raise RuntimeError(
                f"backward: a tensor of shape {list(saved.tensor.shape)} must be as it was in the "
                "forward pass, got one that was modified in place. Clone it before."
            )
        return saved.tensor
    y = saved.codes.values()
    if y.size() == saved.size and y.stride() == saved.stride:
        return y
    return y.as_strided(saved.size, saved.stride, saved.offset)


@register_fake("octavo::fake_quantize_codes")
def _(  # noqa: PLR0917 (the operator's own order)
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    learned: bool,
) -> tuple[Tensor, Tensor]:
    return _empty(y, group_size, torch.uint8), y.new_empty(1, dtype=torch.uint8)


@register_fake("octavo::fake_quantize_values")
def _(  # noqa: PLR0917 (the operator's own order)
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    qmin: int,
    qmax: int,
    axis: int | None,
    group_size: int,
    learned: bool,
) -> Tensor:
    return _empty(codes, group_size, torch.float32)


def _empty(x: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    if group_size:
        return x.new_empty(x.shape, dtype=dtype)
    return x.new_empty_strided(x.shape, memory_order.dense_strides(x), dtype=dtype)
