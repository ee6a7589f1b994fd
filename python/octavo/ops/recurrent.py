"""Steps of recurrent networks: all of a sequence with integer products inside, or one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["recurrent", "recurrent_cell"]

# Bound once: a look-up in every call took a fraction of a microsecond.
_operator = torch.ops.octavo.recurrent.default
_cell_operator = torch.ops.octavo.recurrent_cell.default


def recurrent(  # noqa: PLR0917 (the operator's own order)
    gates: Tensor,
    weight: Tensor,
    h: Tensor,
    c: Tensor | None,
    batch_sizes: Sequence[int],
    reverse: bool,
    mode: str,
    activations: str = "dynamic",
    scale: float = 1.0,
    zero_point: int = 0,
    max_code: int = 255,
    packed: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of all time steps, and the last h and c of every sequence.

    Each step multiplies h with the weight as `linear_dynamic`, `linear_lowbit` or their variants
    with static activations do, and then computes `recurrent_cell`. Results have the same bits for
    every instruction set, number of threads and batch.

    Args:
        gates: float32 [rows, G * width], the input's part with its bias, one time step after the
            other.
        weight: uint8, what ``pack_weight`` or ``pack_lowbit`` made of weight_hh and its bias.
        h: float32 [sequences, width], the first state.
        c: float32 [sequences, width] for "LSTM", else None.
        batch_sizes: sequences at each time step, as in a PackedSequence: never growing, the first
            has all; their sum is ``rows``.
        reverse: from the last time to the first; a sequence begins where it ends.
        mode: "LSTM" (G = 4), "GRU" (3), "RNN_TANH" or "RNN_RELU" (1).
        activations: of h, "dynamic": each row gets a range of its own; "static": the next three
            arguments give it; "float": only where weights are packed.
        scale: of h, a normal float32.
        zero_point: 0..max_code.
        max_code: 2 ** bits - 1, at most 255.
        packed: whether ``pack_lowbit`` made the weight.

    Returns:
        float32 [rows, width], [sequences, width] and the same (empty but for "LSTM").

    Raises:
        RuntimeError: from a backward pass through the result.
    """
    call = (weight, tuple(batch_sizes), reverse, mode, activations, scale, zero_point, max_code)
    result: tuple[Tensor, Tensor, Tensor]
    if checks.needs_refusal([x for x in (gates, h, c) if x is not None]):
        result = _Refusing.apply(gates, h, c, *call, packed)  # type: ignore[no-untyped-call]
    else:
        result = _call(gates, h, c, *call, packed)
    return result


def recurrent_cell(x: Tensor, h: Tensor, state: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """The next h and c (empty but for "LSTM"), by the formulas of torch.nn.LSTM, GRU and RNN.

    Results have the same bits for every instruction set, and are within 1e-6 of torch's.

    Args:
        x: float32 [rows, G * width], the input's part of the gates.
        h: float32 [rows, G * width], the hidden state's part.
        state: float32 [rows, width]: c of "LSTM", h of others.
        mode: as for `recurrent`.

    Raises:
        RuntimeError: from a backward pass through the result.
    """
    result: tuple[Tensor, Tensor]
    if checks.needs_refusal((x, h, state)):
        result = _RefusingCell.apply(x, h, state, mode)  # type: ignore[no-untyped-call]
    else:
        result = _cell_operator(x, h, state, mode)
    return result


def _call(gates: Tensor, h: Tensor, c: Tensor | None, weight: Tensor, *options: Any) -> Any:
    return _operator(gates, weight, h, c, *options)


@checks.register_fake("octavo::recurrent")
def _(gates: Tensor, weight: Tensor, h: Tensor, c: Tensor | None, *options: Any) -> Any:
    last_c = h.new_empty(0) if c is None else torch.empty_like(c)
    return h.new_empty(gates.shape[0], h.shape[1]), h.new_empty(h.shape), last_c


@checks.register_fake("octavo::recurrent_cell")
def _(x: Tensor, h: Tensor, state: Tensor, mode: str) -> Any:
    return state.new_empty(state.shape), state.new_empty(state.shape if mode == "LSTM" else 0)


class _Refusing(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gates: Tensor, h: Tensor, c: Tensor | None, *call: Any) -> Any:
        return _call(gates, h, c, *call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.shape, ctx.count = inputs[0].shape, len(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refused = checks.refuse_gradient(gradients[0], ctx.shape)
        return refused, *(None,) * (ctx.count - 1)


class _RefusingCell(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, h: Tensor, state: Tensor, mode: str) -> Any:
        return _cell_operator(x, h, state, mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return checks.refuse_gradient(gradients[0], ctx.shape), None, None, None
