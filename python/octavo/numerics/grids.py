"""Level grids: which real values the codes of a weight stand for. One row each in `GRIDS`.

Every grid but "linear" is a table of 2^bits levels, each an integer of 8 bits times the scale of
the channel or group, so that training, rounding and the integer kernels agree exactly. Tables are
ascending; a grid with fewer levels repeats its largest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.numerics.scheme import Scheme

__all__ = [
    "GRIDS",
    "TABLE_CHANNELS",
    "Snap",
    "codes_of",
    "grids",
    "levels_of",
    "neighbours",
    "snap",
    "spread",
    "spread_zero_point",
    "values_of",
]

TABLE_CHANNELS = 64
"""Consecutive output channels that share one table of levels."""

_LARGEST = 127
_RATIOS = (2**-0.25, 2**-0.5, 2**-1)


# ---- levels --------------------------------------------------------------------------------------


def pot(bits: int) -> list[int]:
    """Zero and powers of two: 0, +-1, +-1/2, +-1/4 ..."""
    return _mirrored([2**i for i in range(2 ** (bits - 1) - 1)])


def apot(bits: int) -> list[int]:
    """Sums of powers of two (Li et al., "Additive Powers-of-Two Quantization", 2020).

    Base sets as in their repository (models/quant_layer.py). 2 and 8 bits are uniform.
    """
    exponents = {
        3: [[1, 2, 3]],
        4: [[1, 2, 4], [3]],
        5: [[1, 3, 5], [2, 4, 6]],
        6: [[1, 3, 6], [2, 4, 7], [5]],
        7: [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
    }
    if bits not in exponents:
        return _mirrored(list(range(1, 2 ** (bits - 1))))
    bases = [[0, *(2 ** (9 - e) for e in base)] for base in exponents[bits]]
    return _mirrored(sorted({sum(parts) for parts in itertools.product(*bases)} - {0}))


def log(bits: int, ratio: float = 2**-0.5) -> list[int]:
    """Zero and powers of a ratio: as `pot`, with finer steps.

    Args:
        bits: width, 2..8: there are 2^bits - 1 levels.
        ratio: quotient of neighbouring levels, between 0 and 1.
    """
    found = [round(_LARGEST * ratio**i) for i in range(2 ** (bits - 1) - 1)]
    return sorted([0, *found, *(-value for value in found)])


def nf(bits: int) -> list[int]:
    """Quantiles of the normal distribution (Dettmers et al., "QLoRA", 2023, appendix E)."""
    n = 2**bits
    end = 1 - (1 / (2 * n) + 1 / (2 * n - 2)) / 2

    def quantiles(count: int) -> list[float]:
        p = torch.linspace(end, 0.5, count, dtype=torch.float64)[:-1]
        normal: list[float] = torch.special.ndtri(p).tolist()
        return normal

    positive, negative = quantiles(n // 2 + 1), quantiles(n // 2)
    top = positive[0]
    reals = [*(v / top for v in positive), 0.0, *(-v / top for v in negative)]
    return sorted(round(_LARGEST * value) for value in reals)


def _mirrored(magnitudes: list[int]) -> list[int]:
    """s8 levels 0 and +- the magnitudes: as they are where they fit, else 127 is the largest."""
    divisor = math.gcd(*magnitudes)
    found = [m // divisor for m in magnitudes]
    top = max(found)
    if top > _LARGEST:
        found = [round(_LARGEST * m / top) for m in found]
    return sorted([0, *found, *(-value for value in found)])


def _fixed(make: Callable[[int], list[int]]) -> Callable[[Tensor, Tensor, int], Tensor]:
    def tables(u: Tensor, _importance: Tensor, bits: int) -> Tensor:
        count = -(-u.shape[0] // TABLE_CHANNELS)
        return _padded(make(bits), bits).expand(count, -1).clone()

    return tables


def _padded(levels: list[int], bits: int) -> Tensor:
    levels = sorted(levels)
    return torch.tensor([levels + [levels[-1]] * (2**bits - len(levels))], dtype=torch.int8)


def _log_tables(u: Tensor, importance: Tensor, bits: int) -> Tensor:
    """The ratio of each table with the smallest squared error."""
    candidates = [_padded(log(bits, ratio), bits) for ratio in _RATIOS]
    tables = []
    for rows, weights in zip(
        torch.split(u, TABLE_CHANNELS), torch.split(importance, TABLE_CHANNELS), strict=True
    ):
        errors = []
        for table in candidates:
            # Each ratio with the whole range: the largest levels are equal.
            off = rows - Snap(Scheme(bits), table)(rows)
            errors.append(float((weights * off.square()).sum()))
        tables.append(candidates[errors.index(min(errors))])
    return torch.cat(tables) if tables else torch.zeros(0, 2**bits, dtype=torch.int8)


def _kmeans_tables(u: Tensor, importance: Tensor, bits: int) -> Tensor:
    tables = [
        kmeans(rows.flatten(), weights.flatten(), bits)
        for rows, weights in zip(
            torch.split(u, TABLE_CHANNELS), torch.split(importance, TABLE_CHANNELS), strict=True
        )
    ]
    return torch.stack(tables) if tables else torch.zeros(0, 2**bits, dtype=torch.int8)


def kmeans(values: Tensor, weights: Tensor, bits: int) -> Tensor:
    """int8 [2^bits]: the s8 levels with the smallest sum of weights * (value - level)^2.

    Exact, by dynamic programming over the 255 levels that there are: with two neighbours of a table
    chosen, the error of the values between them is known, whatever the rest of the table.
    """
    order = values.argsort()
    x, f = values[order].double(), weights[order].double()
    zero = torch.zeros(1, dtype=torch.float64)
    s0, s1, s2 = (torch.cat([zero, (f * x**k).cumsum(0)]) for k in range(3))
    grid = torch.arange(-_LARGEST, _LARGEST + 1, dtype=torch.float64)

    def between(start: Tensor, stop: Tensor, level: Tensor) -> Tensor:
        d0, d1, d2 = (s[stop] - s[start] for s in (s0, s1, s2))
        return d2 - 2 * level * d1 + level**2 * d0

    a, b = grid[:, None], grid[None, :]
    at = torch.searchsorted(x, grid)
    middle = torch.searchsorted(x, ((a + b) / 2).flatten()).view(255, 255)
    low, high = at[:, None].expand(255, 255), at[None, :].expand(255, 255)
    cost = between(low, middle, a) + between(middle, high, b)
    cost = torch.where(b > a, cost, torch.inf)
    none, end = torch.zeros_like(at), torch.full_like(at, len(x))
    best = between(none, at, grid)  # With each level as the lowest.
    came: list[Tensor] = []
    for _ in range(min(2**bits, 255) - 1):
        total, source = (best[:, None] + cost).min(0)
        came.append(source)
        best = total
    last = int((best + between(at, end, grid)).argmin())
    chosen = [last]
    for source in reversed(came):
        chosen.append(int(source[chosen[-1]]))
    return _padded([level - _LARGEST for level in chosen], bits)[0]


GRIDS: dict[str, Callable[[Tensor, Tensor, int], Tensor] | None] = {
    "linear": None,
    "pot": _fixed(pot),
    "apot": _fixed(apot),
    "log": _log_tables,
    "kmeans": _kmeans_tables,
    "nf": _fixed(nf),
}
"""Name of a grid to the function that makes its tables; None for codes that are the levels."""


def grids() -> tuple[str, ...]:
    """Names of the level grids that ``quantize(grid=)`` takes.

    Example:
        >>> import octavo
        >>> octavo.grids()
        ('linear', 'pot', 'apot', 'log', 'kmeans', 'nf')
    """
    return tuple(GRIDS)


def levels_of(
    scheme: Scheme, weight: Tensor, scale: Tensor, importance: Tensor | None = None
) -> Tensor | None:
    """int8 [tables, 2^bits], one table for 64 output channels; None for the linear grid.

    Args:
        scheme: names the grid.
        weight: float [O, K].
        scale: float [O, K] or [O, 1]: what a level of 1 stands for.
        importance: [O, K], what a squared error of each weight costs; None: all the same.
    """
    make = GRIDS[scheme.grid]
    if make is None:
        return None
    u = (weight / scale).clamp(-2.0 * _LARGEST, 2.0 * _LARGEST)
    # In units of a power of two, so that squares of huge and of tiny scales are numbers.
    unit = math.ldexp(1.0, math.frexp(float(scale.max()))[1] - 1) if scale.numel() else 1.0
    cost = (scale / unit).expand_as(u).square()
    return make(u, cost if importance is None else cost * importance, scheme.bits)


def largest_level(scheme: Scheme) -> int:
    """The level that the largest weight of a channel or group has before its scale is searched."""
    if scheme.grid == "linear":
        return scheme.qmax
    fixed = {"pot": pot, "apot": apot}.get(scheme.grid)
    return max(fixed(scheme.bits)) if fixed else _LARGEST


# ---- values and codes ----------------------------------------------------------------------------


class Snap:
    """Rounds weights, in units of their scale, to the nearest level.

    Args:
        scheme: bounds the codes of the linear grid.
        levels: int8 [tables, 2^bits], ascending; None for the linear grid. Of two levels equally
            near the lower is taken, of two integers the even one.
        zero_point: [O, groups], None where the scheme is symmetric.
    """

    def __init__(
        self, scheme: Scheme, levels: Tensor | None = None, zero_point: Tensor | None = None
    ) -> None:
        self._scheme = scheme
        self._low = None if zero_point is None else -zero_point.float()
        self._bounds = scheme.qmin, scheme.qmax
        self._nearest: Tensor | None = None
        if levels is not None:
            # Levels are integers, so middles are halves: u in (j / 2 - 1 / 2, j / 2] lies on one
            # side of each of them, and its level is that of j / 2.
            halves = torch.arange(-256, 257).float() / 2
            table = levels.float()
            middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
            at = torch.searchsorted(middles, halves.expand(len(table), -1).contiguous())
            self._nearest = table.gather(1, at).flatten()

    def __call__(
        self, u: Tensor, rows: int = 1, first: int = 0, column: int | None = None
    ) -> Tensor:
        """The nearest level of each weight, float32 of the shape of ``u``.

        Args:
            u: float32 [n * rows, K], weights in units of their scale.
            rows: rows of ``u`` that belong to one output channel, a group of inputs each.
            first: the output channel of the first row.
            column: which input the only column of ``u`` [n, 1] belongs to; None: ``u`` has all
                inputs of its rows.
        """
        if self._low is not None:
            low = self._lowest(self._low[first : first + len(u) // rows], u.shape[1], rows, column)
            return u.maximum(low).minimum(low + (self._scheme.codes - 1)).round_()
        if self._nearest is None:
            return u.clamp(*self._bounds).round_()
        channels = torch.arange(u.shape[0]) // rows + first
        offset = (channels // TABLE_CHANNELS) * 513 + 256
        at = (u * 2).ceil_().clamp_(-256, 256).to(torch.int32) + offset.to(torch.int32)[:, None]
        return self._nearest.take(at.long())

    def ends(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """The smallest and largest level of the weights [rows, columns], or of all: linear grid."""
        if self._low is None:
            return torch.tensor(float(self._bounds[0]), dtype=torch.float32), torch.tensor(
                float(self._bounds[1]), dtype=torch.float32
            )
        low = self._lowest(self._low[:rows], columns)
        return low, low + (self._scheme.codes - 1)

    def ends_of(self, count: int, rows: int, first: int) -> Tensor:
        """float32 [2, count]: the smallest and largest level of rows as `__call__` takes them.

        Linear grid.
        """
        if self._low is None:
            return torch.tensor(self._bounds, dtype=torch.float32)[:, None].expand(2, count)
        low = self._low[first : first + count // rows].reshape(-1)
        return torch.stack([low, low + (self._scheme.codes - 1)])

    def _lowest(
        self, low: Tensor, columns: int, rows: int = 1, column: int | None = None
    ) -> Tensor:
        """The smallest level of each weight, from those of groups [O, groups]."""
        if rows > 1 or low.shape[1] == 1:
            return low.reshape(-1, 1)
        if column is not None:
            return low[:, column // self._scheme.group_size, None]
        return low.repeat_interleave(self._scheme.group_size, 1)[:, :columns]


def snap(u: Tensor, scheme: Scheme, levels: Tensor | None = None) -> Tensor:
    """The level nearest to each weight, float32 [O, K].

    Args:
        u: float32 [O, K], weights in units of their scale.
        scheme: bounds the codes of the linear grid.
        levels: as for `Snap`.
    """
    return Snap(scheme, levels)(u)


def neighbours(
    u: Tensor, scheme: Scheme, levels: Tensor | None = None, zero_point: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The two levels between which each weight lies: the lower and the higher one, [O, K] each.

    Weights outside of the grid get its two first or its two last levels.

    Args:
        u: float32 [O, K], weights in units of their scale.
        scheme: bounds the codes of the linear grid.
        levels: int8 [tables, 2^bits], ascending; None for the linear grid.
        zero_point: [O, groups], None where the scheme is symmetric.
    """
    if levels is None:
        smallest, largest = Snap(scheme, None, zero_point).ends(*u.shape)
        low = u.floor().maximum(smallest).minimum(largest - 1)
        return low, low + 1
    table = _of_rows(levels, u)
    above = torch.searchsorted(table, u.contiguous(), right=True).clamp_(1, table.shape[1] - 1)
    return table.gather(1, above - 1), table.gather(1, above)


def codes_of(
    values: Tensor, bits: int, levels: Tensor | None, zero_point: Tensor | None = None
) -> Tensor:
    """The codes of levels, int8 of the shape of ``values``.

    A code is the index of the level in its table, less 2^(bits - 1). Levels of the linear grid are
    their own codes, shifted by the zero point where there is one.

    Args:
        values: int8 [O, ...], levels.
        bits: width of the codes, 2..8.
        levels: int8 [tables, 2^bits], ascending; None for the linear grid.
        zero_point: [O, K] or [O, 1], of each level; None where the scheme is symmetric.
    """
    if levels is None:
        return values if zero_point is None else (values + (zero_point - 2 ** (bits - 1))).char()
    flat = values.reshape(values.shape[0], math.prod(values.shape[1:])).contiguous()
    index: Tensor = torch.searchsorted(_of_rows(levels, flat), flat)
    codes: Tensor = (index - 2 ** (bits - 1)).to(torch.int8)
    return codes.view(values.shape)


def values_of(
    codes: Tensor, bits: int, levels: Tensor | None, zero_point: Tensor | None = None
) -> Tensor:
    """The levels of codes, int8 of the shape of ``codes``: the inverse of `codes_of`.

    Args:
        codes: int8 [O, ...].
        bits: width of the codes, 2..8.
        levels: as for `codes_of`.
        zero_point: as for `codes_of`.
    """
    if levels is None:
        return codes if zero_point is None else (codes - (zero_point - 2 ** (bits - 1))).char()
    flat = codes.reshape(codes.shape[0], math.prod(codes.shape[1:])).long() + 2 ** (bits - 1)
    values: Tensor = _of_rows(levels, codes).gather(1, flat)
    return values.to(torch.int8).view(codes.shape)


def spread(scale: Tensor, group_size: int, columns: int) -> Tensor:
    """[O, columns]: scales [O, groups] repeated for each input of their group; [O, 1] from [O]."""
    if scale.dim() == 1:
        return scale[:, None]
    return scale.repeat_interleave(group_size, 1)[:, :columns]


def spread_zero_point(zero_point: Tensor | None, group_size: int, columns: int) -> Tensor | None:
    """int16 [O, columns], or [O, 1] without groups: the zero point of each weight."""
    if zero_point is None:
        return None
    wide = zero_point.to(torch.int16)
    return spread(wide, group_size, columns) if group_size else wide


def _of_rows(levels: Tensor, u: Tensor) -> Tensor:
    """The table of each row of ``u``, in its type."""
    return levels.to(u.dtype).repeat_interleave(TABLE_CHANNELS, 0)[: u.shape[0]].contiguous()
