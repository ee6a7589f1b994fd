"""Round to nearest, with a clip range per output channel that is searched, not assumed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from octavo.ranges import MIN_SCALE
from octavo.rounding.codes import Codes
from octavo.scheme import Scheme

__all__ = ["nearest", "nearest_of_layer", "round_to_codes"]

_EXPONENT = 2.4  # Lp norm of the weight error: p > 2 protects large weights (JingInAI/Quantize).
_COARSE = tuple(-i / 100 for i in range(8, 81, 8))  # Ratios 0.92, 0.84, ... 0.20
_FINE = tuple(i / 100 for i in range(-7, 8) if i)
_CHUNK = 1 << 18  # Elements rounded at once: the search stays in the cache.


def nearest(weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Codes:
    """Codes of a weight, each the nearest integer multiple of its output channel's scale.

    The scale is ratio * max|w| / qmax with the ratio in 0.20 .. 1.00 (steps of 0.01, coarse to
    fine, 1.00 always among them) that minimises sum |w - Q(w)|^2.4 over the channel. A channel of
    zeros gets the smallest safe scale.

    Args:
      weight: float [O, ...], finite.
      bias: float [O] or None, passed through as float32.
      scheme: width of the codes; linear grid, one scale per output channel.
    """
    rows = weight.detach().to(torch.float32).reshape(weight.shape[0], math.prod(weight.shape[1:]))
    codes = torch.empty(rows.shape, dtype=torch.int8)
    scale = torch.empty(rows.shape[0], dtype=torch.float32)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        scale[part] = _search(rows[part], scheme)
        codes[part] = round_to_codes(rows[part], scale[part], scheme).to(torch.int8)
    if bias is not None:
        bias = bias.detach().to(torch.float32).clone()
    return Codes(codes.view(weight.shape), scale, bias, scheme)


def nearest_of_layer(module: nn.Module, weight: Tensor, scheme: Scheme) -> Codes:
    """`nearest` for a layer with its canonical weight."""
    return nearest(weight, module._parameters.get("bias"), scheme)


def round_to_codes(rows: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """float32 [O, K] of integers: rne(clamp(w * float32(1 / scale))), the product in float32."""
    return (rows * (1.0 / scale)[:, None]).clamp(scheme.qmin, scheme.qmax).round()


def _search(rows: Tensor, scheme: Scheme) -> Tensor:
    """float32 [O]: the best scale of each row."""
    if rows.shape[1] == 0:
        return torch.full((rows.shape[0],), MIN_SCALE)
    largest = rows.abs().amax(1)
    ratio = torch.ones_like(largest)
    error = _error(rows, _scale(largest, ratio, scheme), scheme)
    for offsets in (_COARSE, _FINE):
        center = ratio if offsets is _FINE else torch.ones_like(ratio)
        for offset in offsets:
            candidate = (center + offset).clamp(0.2, 1.0)
            new = _error(rows, _scale(largest, candidate, scheme), scheme)
            ratio = torch.where(new < error, candidate, ratio)
            error = torch.minimum(new, error)
    return _scale(largest, ratio, scheme)


def _scale(largest: Tensor, ratio: Tensor, scheme: Scheme) -> Tensor:
    return (largest * ratio / scheme.qmax).clamp(min=MIN_SCALE)


def _error(rows: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """float64 [O]: sum |w - Q(w)|^2.4 in units of the row's largest weight."""
    unit = rows.abs().amax(1).clamp(min=MIN_SCALE)
    off = (rows - round_to_codes(rows, scale, scheme) * scale[:, None]).abs_() / unit[:, None]
    return off.pow_(_EXPONENT).sum(1, dtype=torch.float64)
