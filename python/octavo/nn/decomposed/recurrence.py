"""Recurrent networks from products of layers: one step, and all steps of a sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["State", "Step", "cell", "over_time"]

#: h, or h and c; [rows, width] each.
State = tuple[Tensor, ...]
#: From the input's part of the gates [rows, gates] and the state of these rows to their next state.
Step = Callable[[Tensor, State], State]


# One function for function modes too: rounding in lockstep changes threads for every function.
@torch.overrides.wrap_torch_function(lambda mode, x, h, state: (x, h))
def cell(mode: str, x: Tensor, h: Tensor, state: State) -> State:
    """The next state, by the formulas of torch.nn.LSTM, GRU and RNN.

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        x: [rows, gates], product of the input with weight_ih, and its bias.
        h: [rows, gates], product of the hidden state with weight_hh, and its bias.
        state: h, for LSTM h and c.
    """
    if mode == "LSTM":
        i, f, g, o = (x + h).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = h.chunk(3, -1)
        n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return (n + (x_z + h_z).sigmoid() * (state[0] - n),)
    return ((x + h).tanh() if mode == "RNN_TANH" else (x + h).relu(),)


def over_time(
    gates: Tensor, state: State, batch_sizes: list[int], reverse: bool, step: Step
) -> tuple[Tensor, State]:
    """[rows of all times, width] the hidden states, and the last state of every sequence.

    Args:
        gates: [rows of all times, gates], the input's part, one time step after the other.
        state: the first state, [sequences, ...].
        batch_sizes: how many sequences each time step has; they never grow, the first has all.
        reverse: from the last time to the first; a sequence begins where it ends.
        step: from one time step to the next.
    """
    times = torch.split(gates, batch_sizes)
    outputs: list[Tensor] = []
    ended: list[State] = []
    first, state = state, tuple(s[: batch_sizes[-1]] for s in state) if reverse else state
    for x in times[::-1] if reverse else times:
        rows, held = x.shape[0], state[0].shape[0]
        if rows > held:
            state = tuple(torch.cat([s, f[held:rows]]) for s, f in zip(state, first, strict=True))
        elif rows < held:
            ended.append(tuple(s[rows:] for s in state))
            state = tuple(s[:rows] for s in state)
        state = step(x, state)
        outputs.append(state[0])
    if ended:
        parts = (state, *reversed(ended))
        state = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    return torch.cat(outputs[::-1] if reverse else outputs), state
