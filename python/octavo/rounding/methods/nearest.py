"""Round to nearest, with a clip range per channel or group that is searched, not assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.nn.registry import layer_bias
from octavo.numerics.codes import Codes
from octavo.numerics.grids import Snap, largest_level, levels_of, spread
from octavo.numerics.scheme import MIN_SCALE, Scheme
from octavo.ops.clip_error import clip_error

__all__ = ["nearest", "nearest_of_layer", "safe_scale"]

_EXPONENT = 2.4  # Lp norm of the weight error: p > 2 protects large weights (JingInAI/Quantize).
_COARSE = tuple(-i / 100 for i in range(8, 81, 8))  # Ratios 0.92, 0.84, ... 0.20
_FINE = tuple(i / 100 for i in range(-7, 8) if i)
_LARGEST_BF16 = torch.finfo(torch.bfloat16).max
_CHUNK = 1 << 18  # Elements rounded at once: the search stays in the cache.
_ROUNDS = {"kmeans": 3, "log": 2}  # By turns levels and scales, where levels depend on weights.


def nearest(
    weight: Tensor, bias: Tensor | None, scheme: Scheme, importance: Tensor | None = None
) -> Codes:
    """Codes of a weight, each the nearest level times the scale of its output channel or group.

    The scale is ratio * max|w| / largest level with the ratio in 0.20 .. 1.00 (steps of 0.01,
    coarse to fine, 1.00 always among them) that minimises sum |w - Q(w)|^2.4 over the channel, the
    group or, per tensor, the whole weight. A channel of zeros gets the smallest safe scale. With
    zero points it is the range of the weights, 0 included, that is divided by 2^bits - 1, and the
    zero point is where 0 lies in it.

    Args:
        weight: float [O, ...], finite.
        bias: float [O] or None, passed through as float32.
        scheme: width, levels and groups.
        importance: [K], what an error of each input's weight costs; None: all the same.
    """
    rows = weight.detach().to(torch.float32).reshape(weight.shape[0], math.prod(weight.shape[1:]))
    if bias is not None:
        bias = bias.detach().to(torch.float32).clone()
    size = scheme.group_size or max(rows.shape[1], 1)
    groups = max(1, -(-rows.shape[1] // size))
    # A shorter last group is filled with zeros, which are levels of every grid.
    pieces = F.pad(rows, (0, groups * size - rows.shape[1])).reshape(-1, size)
    weights = None
    if importance is not None:
        filled = F.pad(importance.float(), (0, groups * size - rows.shape[1]))
        weights = filled.view(1, groups, size).expand(rows.shape[0], -1, -1).reshape(-1, size)
    zero = None if scheme.symmetric else _zero_points(pieces, scheme).view(-1, groups)
    scale = _initial(pieces, scheme)
    levels = None
    for _ in range(_ROUNDS.get(scheme.grid, 1)):
        whole = spread(scale.view(-1, groups), size, rows.shape[1])
        costs = None if importance is None else importance.expand_as(rows)
        levels = levels_of(scheme, rows, whole, costs)
        snap = Snap(scheme, levels, zero)
        scale = _searched(_Pieces(pieces, weights, scheme, snap, groups))
    result = scale.view(-1, groups) if scheme.group_size else scale
    whole = spread(scale.view(-1, groups), size, rows.shape[1])
    codes = torch.empty(rows.shape, dtype=torch.int8)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        codes[part] = snap(rows[part] * (1.0 / whole[part]), 1, start).to(torch.int8)
    return Codes(codes.view(weight.shape), result.contiguous(), bias, scheme, levels, zero)


def nearest_of_layer(module: nn.Module, weight: Tensor, scheme: Scheme) -> Codes:
    """`nearest` for a layer with its canonical weight."""
    return nearest(weight, layer_bias(module), scheme)


def safe_scale(scale: Tensor, scheme: Scheme) -> Tensor:
    """Positive and normal; a bfloat16 number where the scheme has groups."""
    scale = scale.clamp(min=MIN_SCALE)
    return scale.clamp(max=_LARGEST_BF16).bfloat16().float() if scheme.group_size else scale


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Rows that have a scale each.

    Attributes:
        groups: how many of them belong to one output channel.
    """

    rows: Tensor
    importance: Tensor | None
    scheme: Scheme
    snap: Snap
    groups: int
    first: int = 0  # The channel of the first row.

    def part(self, start: int, count: int) -> _Pieces:
        """Some of the rows.

        Args:
            start: the first of them, which begins a channel.
            count: how many.
        """
        stop = start + count
        return _Pieces(
            self.rows[start:stop],
            None if self.importance is None else self.importance[start:stop],
            self.scheme,
            self.snap,
            self.groups,
            start // self.groups,
        )

    def errors(self, scales: Tensor) -> Tensor:
        """float64 [rows, n]: sum |w - Q(w)|^2.4 in units of the row's largest weight.

        Args:
            scales: [rows, n].
        """
        low, high = _ends(self.rows, self.scheme)
        unit = torch.maximum(-low, high).clamp(min=MIN_SCALE)
        if self.scheme.grid == "linear":
            ends = self.snap.ends_of(len(self.rows), self.groups, self.first)
            errors = clip_error(self.rows, scales, unit, ends, self.importance)
        else:
            errors = torch.stack([self._error(scale, unit) for scale in scales.unbind(1)], 1)
        return errors.sum(0).expand_as(errors) if self.scheme.per_tensor else errors

    def _error(self, scale: Tensor, unit: Tensor) -> Tensor:
        u = self.rows * (1.0 / scale)[:, None]
        off = self.rows - self.snap(u, self.groups, self.first) * scale[:, None]
        power = (off.abs_() / unit[:, None]).pow_(_EXPONENT)
        if self.importance is not None:
            power *= self.importance
        return power.sum(1, dtype=torch.float64)


def _initial(rows: Tensor, scheme: Scheme) -> Tensor:
    if rows.shape[1] == 0 or rows.shape[0] == 0:
        return torch.full((rows.shape[0],), MIN_SCALE, dtype=torch.float32)
    return safe_scale(_widest(rows, scheme), scheme)


def _ends(rows: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The range of what shares each row's scale, 0 included."""
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if scheme.per_tensor:
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    return low, high


def _widest(rows: Tensor, scheme: Scheme) -> Tensor:
    """The scale of each row that clips nothing."""
    low, high = _ends(rows, scheme)
    if scheme.symmetric:
        return torch.maximum(-low, high) / largest_level(scheme)
    return (high / 2 - low / 2) / (scheme.codes - 1) * 2  # The range itself may be infinite.


def _zero_points(rows: Tensor, scheme: Scheme) -> Tensor:
    """uint8 [rows]: the code of 0, the same whatever share of the range is kept."""
    if rows.numel() == 0:
        return torch.zeros(rows.shape[0], dtype=torch.uint8)
    low, high = _ends(rows, scheme)
    share = (-low / 2) / (high / 2 - low / 2).clamp(min=MIN_SCALE)
    codes: Tensor = (share * (scheme.codes - 1)).round()
    return codes.to(torch.uint8)


def _searched(pieces: _Pieces) -> Tensor:
    """float32 [rows]: the best scale of each row."""
    size = max(1, pieces.rows.shape[1])
    step = max(1, _CHUNK // size // pieces.groups) * pieces.groups
    if pieces.scheme.per_tensor:
        step = max(1, pieces.rows.shape[0])
    parts = [pieces.part(s, step) for s in range(0, pieces.rows.shape[0], step)]
    return (
        torch.cat([_search(part) for part in parts])
        if parts
        else torch.zeros(0, dtype=torch.float32)
    )


def _search(pieces: _Pieces) -> Tensor:
    rows, scheme = pieces.rows, pieces.scheme
    if rows.shape[1] == 0:
        return torch.full((rows.shape[0],), MIN_SCALE, dtype=torch.float32)
    widest = _widest(rows, scheme)

    ratio = torch.ones_like(widest)
    for offsets in (_COARSE, _FINE):
        candidates = (ratio[:, None] + torch.tensor((0.0, *offsets), dtype=torch.float32)).clamp(
            0.2, 1.0
        )
        errors = pieces.errors(safe_scale(widest[:, None] * candidates, scheme))
        ratio = candidates.gather(1, errors.argmin(1, keepdim=True)).squeeze(1)
    return safe_scale(widest * ratio, scheme)
