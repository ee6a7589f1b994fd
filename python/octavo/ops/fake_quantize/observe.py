"""Observe the range of values and fake-quantize them by it, in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octavo.errors import describe
from octavo.ops import memory_order
from octavo.ops.checks import register_fake
from octavo.ops.fake_quantize import checks, formula
from octavo.ops.fake_quantize.codes import note
from octavo.ops.fake_quantize.plain import apply, empty_result

__all__ = ["Observed", "observe_fake_quantize"]


class Observed(NamedTuple):
    """What `observe_fake_quantize` returns.

    Attributes:
        y: the values, fake-quantized.
        scale, zero_point: float32, the steps used, [1] or [C].
        non_finite: int64 [1], how many values were not finite (0 where nothing was observed).
    """

    y: Tensor
    scale: Tensor
    zero_point: Tensor
    non_finite: Tensor


def observe_fake_quantize(
    x: Tensor,
    state: Tensor,
    *,
    qmin: int,
    qmax: int,
    momentum: float,
    axis: int | None = None,
    symmetric: bool = False,
    rule: str = "minmax",
    update: bool = True,
    relu: bool = False,
) -> Observed:
    """``x`` fake-quantized by the moving average of its range, which this batch moves first.

    >>> import math, torch
    >>> from octavo import ops
    >>> state = torch.tensor([math.inf, -math.inf])  # nothing seen yet
    >>> x = torch.tensor([-1.0, 0.5, 2.0])
    >>> ops.observe_fake_quantize(x, state, qmin=0, qmax=3, momentum=0.1).y
    tensor([-1.,  0.,  2.])
    >>> state
    tensor([-1.,  2.])

    The batch's range is the smallest and largest finite value (rule "minmax"), or that range times
    the one of 1.00, 0.95 ... 0.20 with the smallest squared error (rule "mse"; of at most 4,096
    values, evenly spaced). The first range is taken as it is; later ones move the state by
    ``state += momentum * (range - state)``. Values that are not finite never enter; a batch without
    finite values leaves the state alone. From the state, widened to hold 0, follow scale =
    max((max - min) / (qmax - qmin), 2^-126) and zero_point = rne(-min / scale) + qmin clamped to
    qmin .. qmax; with ``symmetric`` scale = max(max(-min, max) / qmax, 2^-126) and zero_point = 0.
    y and the gradient to x are those of `fake_quantize`.

    Args:
        x: as in `fake_quantize`.
        state: float32 [2] or [2, C], minima then maxima; (inf, -inf) before the first batch. Moved
            in place, and only if ``update``.
        qmin: smallest code, -128 or more.
        qmax: largest code, up to 255.
        momentum: weight of the new batch, 0..1.
        axis: dimension of the channels, None for one range in all.
        symmetric: whether 0 is the middle of the range; qmin <= 0 < qmax then.
        rule: "minmax", or "mse" (without axis).
        update: whether this batch is observed.
        relu: max(x, 0) before.
    """
    # As in `fake_quantize`, checks with full messages run once the kernels refuse.
    error: Exception | None = None
    try:
        plain = x.is_cpu and x.dtype is not torch.float64 and not state.requires_grad
        if plain and rule in _RULES and 0 <= momentum <= 1:
            mse = rule == "mse"
            if x.requires_grad and torch.is_grad_enabled():
                options = (qmin, qmax, momentum, axis, symmetric, mse, update, relu)
                return _apply(x, state, options)
            return Observed._make(  # Not by `_apply`: options packed and unpacked are 0.4 us.
                _operator(x, state, qmin, qmax, momentum, axis, symmetric, mse, update, relu)
            )
    except (AttributeError, RuntimeError, TypeError, ValueError) as refused:
        error = refused
    where = "observe_fake_quantize"
    values = checks.check_values(x, f"{where}: x")
    checks.check_range(qmin, qmax, None if symmetric else state, where)
    if symmetric and qmax == 0:
        raise ValueError(f"{where}: qmax: expected a positive one with symmetric, got 0.")
    number = checks.check_steps(values, axis, 0, where)
    _check_state(state, values, number, f"{where}: state")
    factor = checks.check_number(momentum, 0.0, 1.0, f"{where}: momentum")
    if rule not in _RULES:
        raise ValueError(f"{where}: rule: expected 'minmax' or 'mse', got {describe(rule)}.")
    if rule == "mse" and number is not None:
        raise ValueError(
            f"{where}: rule: expected 'minmax' with axis, got 'mse'. Observe the whole tensor, or "
            "choose weight ranges once, before training."
        )
    if error is not None:
        checks.check_transforms(where, error)
        raise error
    options = (qmin, qmax, factor, number, symmetric, rule == "mse", update, relu)
    y, *others = _apply(values, state, options)
    return Observed(y.to(x.dtype), *others)


_RULES = ("minmax", "mse")

_operator = torch.ops.octavo.observe_fake_quantize.default

_Options = tuple[int, int, float, "int | None", bool, bool, bool, bool]
"""qmin, qmax, momentum, axis, symmetric, mse, update, relu."""


def _apply(x: Tensor, state: Tensor, options: _Options) -> Observed:
    if not x.is_cpu:
        return Observed(*_plain(x, state, *options))
    if x.requires_grad and torch.is_grad_enabled():
        return Observed(*_Observe.apply(x, state, options))  # type: ignore[no-untyped-call]
    return Observed(*_operator(x, state, *options))


class _Observe(torch.autograd.Function):
    """Saves one bit a value, as `fake_quantize` does."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, state: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, scale, zero_point, bad, mask = torch.ops.octavo.observe_fake_quantize_masked(
            x, state, *options
        )
        ctx.save_for_backward(mask)
        ctx.strides = y.stride()
        ctx.mark_non_differentiable(scale, zero_point, bad)
        note(ctx, x, scale, zero_point, (options[0], options[1], options[3], 0, False))
        return y, scale, zero_point, bad

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        dx: Tensor = torch.ops.octavo.fake_quantize_backward(dy, mask, ctx.strides)
        return dx, None, None


def _check_state(state: object, x: Tensor, axis: int | None, where: str) -> None:
    if not isinstance(state, Tensor) or state.dtype is not torch.float32:
        got: Any = state.dtype if isinstance(state, Tensor) else describe(state)
        raise TypeError(f"{where}: expected a float32 tensor, got {got}. Register a buffer.")
    shape = [2] if axis is None else [2, x.shape[axis]]
    if list(state.shape) != shape or state.device != x.device:
        raise ValueError(
            f"{where}: expected shape {shape} on device {str(x.device)!r}, got "
            f"{list(state.shape)} on {str(state.device)!r}. Pass minima and maxima."
        )
    if state.requires_grad:
        raise ValueError(f"{where}: expected no gradient, got requires_grad=True. Use a buffer.")


def _plain(  # noqa: PLR0917 (the operator's own order)
    x: Tensor,
    state: Tensor,
    qmin: int,
    qmax: int,
    momentum: float,
    axis: int | None,
    symmetric: bool,
    mse: bool,
    update: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same on other devices."""
    bad = torch.zeros(1, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        if update and x.numel():
            now, bad = formula.range_of(x, axis, relu)
            if mse:
                now = formula.shrunk(x, now, relu, (qmin, qmax, symmetric))
            fresh = state[0] > state[1]
            moved = torch.where(fresh, now, state + momentum * (now - state))
            state.copy_(torch.where(now[0] > now[1], state, moved))
        scale, zero_point = formula.steps_of_range(state, qmin, qmax, symmetric)
    y = apply(x, scale, zero_point, qmin, qmax, axis, 0, relu)
    return y, scale, zero_point, bad


@register_fake("octavo::observe_fake_quantize")
def _empty(  # noqa: PLR0917 (the operator's own order)
    x: Tensor,
    state: Tensor,
    qmin: int,
    qmax: int,
    momentum: float,
    axis: int | None,
    symmetric: bool,
    mse: bool,
    update: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = 1 if axis is None else x.shape[axis]
    scale, zero_point = state.new_empty(channels), state.new_empty(channels)
    return empty_result(x, 0), scale, zero_point, state.new_empty(1, dtype=torch.int64)


@register_fake("octavo::observe_fake_quantize_masked")
def _(x: Tensor, state: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask = x.new_empty(memory_order.mask_shape(x, options[3], 0), dtype=torch.uint8)
    return *_empty(x, state, *options), mask
