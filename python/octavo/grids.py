"""Level grids: which real values the codes of a weight stand for. One row each in `GRIDS`.

Every grid but "linear" is a table of 2^bits levels, each an integer of 8 bits times the scale of
the channel or group, so that training, rounding and the integer kernels agree exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.scheme import Scheme

__all__ = ["GRIDS", "TABLE_CHANNELS", "neighbours", "snap"]

GRIDS: tuple[str, ...] = ("linear",)
"""Names of the grids. linear: real = code * scale."""

TABLE_CHANNELS = 64
"""Consecutive output channels that share one table of levels."""


def snap(u: Tensor, scheme: Scheme, levels: Tensor | None = None) -> Tensor:
    """The level nearest to each element of ``u`` (weights in units of their scale), same type.

    Args:
        u: float [O, K].
        scheme: bounds the codes of the linear grid.
        levels: int8 [tables, 2^bits], ascending; None for the linear grid. Of two levels equally
            near the lower is taken, of two integers the even one.
    """
    if levels is None:
        return u.clamp(scheme.qmin, scheme.qmax).round_()
    table = _of_rows(levels, u)
    middles = (table[:, 1:] + table[:, :-1]) / 2
    return table.gather(1, torch.searchsorted(middles, u.contiguous()))


def neighbours(u: Tensor, scheme: Scheme, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The levels below and above each element of ``u``; both ends lie inside the grid."""
    if levels is None:
        low = u.floor().clamp_(scheme.qmin, scheme.qmax - 1)
        return low, low + 1
    table = _of_rows(levels, u)
    above = torch.searchsorted(table, u.contiguous(), right=True).clamp_(1, table.shape[1] - 1)
    return table.gather(1, above - 1), table.gather(1, above)


def _of_rows(levels: Tensor, u: Tensor) -> Tensor:
    """The table of each row of ``u``, in its type."""
    return levels.to(u.dtype).repeat_interleave(TABLE_CHANNELS, 0)[: u.shape[0]].contiguous()
