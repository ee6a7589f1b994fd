"""HQQ: scales that make large errors rare rather than all errors small. Needs no data.

Badri and Shaji, "Half-Quadratic Quantization" (2023), with the scale in the place of their zero
point, since weights here are symmetric: minimise |w - s q|_p^p with p < 1 over s, by turns over the
part e of the error that is let go (shrinkage) and the scale that fits what is left.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.nn.registry import layer_bias
from octavo.numerics.codes import Codes
from octavo.numerics.grids import Snap
from octavo.numerics.scheme import MIN_SCALE, Scheme
from octavo.rounding.methods.nearest import nearest, safe_scale

__all__ = ["hqq"]

_P = 0.7
_BETA, _GROWTH = 10.0, 1.01
_ROUNDS = 20


def hqq(module: nn.Module, weight: Tensor, scheme: Scheme) -> Codes:
    """Codes of a layer from its weight alone.

    Args:
        module: the float layer.
        weight: its weight in canonical order.
        scheme: of its weight.
    """
    plain = nearest(weight, layer_bias(module), scheme)
    if weight.numel() == 0:
        return plain
    rows = weight.float().reshape(weight.shape[0], -1).contiguous()
    size = scheme.group_size or rows.shape[1]
    groups = -(-rows.shape[1] // size)
    rows = F.pad(rows, (0, groups * size - rows.shape[1])).view(-1, size)
    # The shrinkage has a unit: the paper's weights are of order one step.
    start = plain.scale.reshape(-1)
    unit, snap = start[:, None].clone(), Snap(scheme, plain.levels, plain.zero_point)
    if plain.levels is not None:
        unit *= plain.levels.float().abs().max() / scheme.qmax

    def shared(sums: Tensor) -> Tensor:
        """Sums over what has one scale, from sums over rows."""
        return sums.sum().expand_as(sums) if scheme.per_tensor else sums

    scale, beta = start.clone(), _BETA
    best, lowest = start, torch.full_like(start, torch.inf)
    for _ in range(_ROUNDS):
        levels = snap(rows * (1.0 / scale)[:, None], groups)
        off = (rows - levels * scale[:, None]) / unit
        error = shared(off.abs().pow(_P).mean(1))
        best = torch.where(error < lowest, scale, best)
        lowest = torch.minimum(error, lowest)
        kept = off.abs() - off.abs().clamp(min=1e-8).pow(_P - 1) / beta
        aimed = rows - off.sign() * kept.clamp(min=0) * unit
        fitted = shared((aimed * levels).sum(1)) / shared(levels.square().sum(1)).clamp(min=1)
        scale = safe_scale(torch.where(fitted > MIN_SCALE, fitted, scale), scheme)
        beta *= _GROWTH
    levels = snap(rows * (1.0 / best)[:, None], groups).view(weight.shape[0], -1)
    levels = levels[:, : weight.shape[1:].numel()].to(torch.int8)
    return replace(plain, codes=levels.reshape(weight.shape), scale=best.view(plain.scale.shape))
