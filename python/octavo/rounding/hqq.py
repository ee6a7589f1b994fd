"""HQQ: scales that make large errors rare rather than all errors small. Needs no data.

Badri and Shaji, "Half-Quadratic Quantization" (2023), with the scale in the place of their zero
point, since weights here are symmetric: minimise |w - s q|_p^p with p < 1 over s, by turns over the
part e of the error that is let go (shrinkage) and the scale that fits what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octavo.ranges import MIN_SCALE
from octavo.rounding.codes import Codes
from octavo.rounding.nearest import nearest, round_to_codes
from octavo.scheme import Scheme

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
    plain = nearest(weight, module._parameters.get("bias"), scheme)
    if weight.numel() == 0:
        return plain
    rows = weight.float().reshape(weight.shape[0], -1)
    # The shrinkage has a unit: the paper's weights are of order one step.
    unit = plain.scale[:, None].clone()
    scale, beta = plain.scale.clone(), _BETA
    best, lowest = plain.scale, torch.full_like(plain.scale, torch.inf)
    for _ in range(_ROUNDS):
        codes = round_to_codes(rows, scale, scheme)
        off = (rows - codes * scale[:, None]) / unit
        error = off.abs().pow(_P).mean(1)
        best = torch.where(error < lowest, scale, best)
        lowest = torch.minimum(error, lowest)
        kept = off.abs() - off.abs().clamp(min=1e-8).pow(_P - 1) / beta
        aimed = rows - off.sign() * kept.clamp(min=0) * unit
        fitted = (aimed * codes).sum(1) / codes.square().sum(1).clamp(min=1)
        scale = torch.where(fitted > MIN_SCALE, fitted, scale)
        beta *= _GROWTH
    codes = round_to_codes(rows, best, scheme)
    return Codes(codes.to(torch.int8).view(weight.shape), best, plain.bias, scheme)
