"""Fake quantization in plain torch: the formulas that the kernels compute, for any device.

Everything is float32 inside, whatever the input's dtype. Tensors of parameters are shaped so that
they broadcast against the values; group-wise ones against the values seen as [O, groups, size].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.numerics.scheme import MIN_SCALE

__all__ = [
    "Options",
    "Steps",
    "clipped",
    "clipped_gradients",
    "gradient",
    "learned_gradients",
    "level_gradients",
    "levels_of",
    "quantized",
    "range_of",
    "shrunk",
    "steps",
    "steps_of_range",
]


class Options(NamedTuple):
    """The options of a fake-quantizer.

    Attributes:
        qmin, qmax: the smallest and the largest code.
        axis: dimension of the channels, or None for one step in all.
        group_size: 0, or inputs that share a step.
        relu: whether max(x, 0) is taken first.
        learned: whether parameters are trained.
        grad_scale: factor of their gradients.
        clip: whether the gradient is 0 outside a table's range.
    """

    qmin: int
    qmax: int
    axis: int | None = None
    group_size: int = 0
    relu: bool = False
    learned: bool = False
    grad_scale: float = 1.0
    clip: bool = False


class Steps(NamedTuple):
    """How values are cut into steps, per tensor, channel or group.

    Attributes:
        scale, inverse: float32, the step and float32(1 / step).
        low, high: float32 integers, qmin - zero_point and qmax - zero_point.
        axis: channels, or None.
        group_size: 0, or inputs that share a step.
    """

    scale: Tensor
    inverse: Tensor
    low: Tensor
    high: Tensor
    axis: int | None
    group_size: int

    def spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``parameter`` in a shape that broadcasts against ``x``.

        Args:
            parameter: [1] or [], [channels], or [channels, groups], as the steps are given.
            x: the values.
        """
        if self.group_size:
            per_channel = x.numel() // x.shape[0] if x.shape[0] else 0
            wide = parameter.repeat_interleave(self.group_size, 1)[:, :per_channel]
            return wide.reshape(x.shape)
        if self.axis is None:
            return parameter.reshape(())
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return parameter.reshape(shape)

    def gathered(self, terms: Tensor) -> Tensor:
        """Sums of ``terms``, which has x's shape, over all that share a parameter; float64."""
        wide = terms.double() if terms.device.type != "mps" else terms
        if self.group_size:
            flat = wide.reshape(terms.shape[0], -1)
            groups = -(-flat.shape[1] // self.group_size)
            padded = torch.nn.functional.pad(flat, (0, groups * self.group_size - flat.shape[1]))
            return padded.reshape(flat.shape[0], groups, self.group_size).sum(2)
        if self.axis is None:
            return wide.sum().reshape(self.scale.shape)
        others = [d for d in range(terms.dim()) if d != self.axis]
        return wide.sum(others) if others else wide


def steps(scale: Tensor, zero_point: Tensor | None, options: Options) -> Steps:
    """Parameters as the formulas use them.

    Learned scales are used as max(abs(scale), `MIN_SCALE`), learned zero points rounded to the
    nearest integer and clamped to qmin .. qmax.
    """
    scale = scale.detach()
    qmin, qmax = options.qmin, options.qmax
    if options.learned:
        scale = scale.abs().clamp_min(MIN_SCALE)
    if zero_point is None:
        low, high = torch.full_like(scale, float(qmin)), torch.full_like(scale, float(qmax))
    else:
        zero = zero_point.detach()
        if options.learned:
            zero = zero.round().clamp(qmin, qmax)
        low, high = qmin - zero, qmax - zero
    return Steps(scale, 1.0 / scale, low, high, options.axis, options.group_size)


def _values(x: Tensor, relu: bool) -> Tensor:
    """float32 of x, and max(x, 0) where relu; NaN stays NaN."""
    values = x.detach().float()
    return torch.where(values <= 0, 0.0, values) if relu else values


def quantized(x: Tensor, s: Steps, relu: bool) -> Tensor:
    """(q - zero_point) * scale in x's dtype; the zero is always +0."""
    scaled = _values(x, relu) * s.spread(s.inverse, x)
    codes = scaled.maximum(s.spread(s.low, x)).minimum(s.spread(s.high, x)).round()
    return ((codes + 0.0) * s.spread(s.scale, x)).to(x.dtype)


def _inside(x: Tensor, s: Steps, relu: bool) -> Tensor:
    """Where the unclamped code lies in qmin .. qmax; with relu, and x > 0."""
    codes = (_values(x, relu) * s.spread(s.inverse, x)).round()
    inside = (codes >= s.spread(s.low, x)) & (codes <= s.spread(s.high, x))
    return inside & (x.detach() > 0) if relu else inside


def gradient(dy: Tensor, x: Tensor, s: Steps, relu: bool) -> Tensor:
    """The gradient to x: dy where the unclamped code lies inside, else 0."""
    return torch.where(_inside(x, s, relu), dy, 0.0)


def learned_gradients(dy: Tensor, x: Tensor, s: Steps, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, and float64 ones to the step and the zero point, per step.

    With t = x / scale as it was quantized and q the code: to the step, dy * (q - zero_point - t)
    inside and dy * (q - zero_point) outside; to the zero point, 0 inside and -dy * scale outside.
    """
    scaled = _values(x, relu) * s.spread(s.inverse, x)
    low, high = s.spread(s.low, x), s.spread(s.high, x)
    rounded = scaled.round()
    inside = (rounded >= low) & (rounded <= high)
    codes = rounded.maximum(low).minimum(high)
    wide = dy.float()
    to_scale = s.gathered(wide * torch.where(inside, codes - scaled, codes))
    outside = torch.where(inside | scaled.isnan(), 0.0, wide)
    to_zero = -s.gathered(outside) * s.scale
    passes = inside & (x.detach() > 0) if relu else inside
    return torch.where(passes, dy, 0.0), to_scale, to_zero


def clipped(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Clips to 0 .. abs(alpha) and rounds to 2^bits - 1 steps (PACT: Choi et al., 2018).

    Args:
        x: float tensor of any shape.
        alpha: float32, one number.
        bits: width of the codes.
    """
    top = 2**bits - 1
    s = steps(alpha.detach() / top, None, Options(0, top, learned=True))
    return quantized(x, s, False)


def clipped_gradients(dy: Tensor, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """To x: dy inside (0, alpha), else 0. To alpha: the sum of dy where x >= alpha, float64."""
    values, top = x.detach().float(), alpha.detach().abs().reshape(())
    above = values >= top
    everything = Steps(alpha, alpha, alpha, alpha, None, 0)
    to_alpha = everything.gathered(torch.where(above, dy.float(), 0.0))
    return torch.where((values > 0) & ~above, dy, 0.0), to_alpha


def _tables(x: Tensor, levels: Tensor) -> Tensor:
    """float32 [blocks, L], and one block per 64 output channels."""
    return levels.detach().float().reshape(-1, levels.shape[-1])


def _nearest(scaled: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to each value; ties go to the lower one, NaN stays NaN."""
    tables = _tables(scaled, levels)
    result = torch.empty_like(scaled)
    for block, table in enumerate(tables):
        rows = slice(None) if len(tables) == 1 else slice(64 * block, 64 * block + 64)
        middles = (table[:-1] + table[1:]) / 2
        part = scaled[rows]
        nearest = table[torch.bucketize(part.contiguous(), middles)]
        result[rows] = torch.where(part.isnan(), part, nearest)
    return result


def levels_of(x: Tensor, levels: Tensor, s: Steps) -> Tensor:
    """Returns level * scale in x's dtype, the level being the nearest to x / scale."""
    scaled = x.detach().float() * s.spread(s.inverse, x)
    return (_nearest(scaled, levels) * s.spread(s.scale, x)).to(x.dtype)


def level_gradients(
    dy: Tensor, x: Tensor, levels: Tensor, s: Steps, clip: bool
) -> tuple[Tensor, Tensor]:
    """Gradients to x, of the type of ``dy``, and to the step, float64.

    With t = x / scale: to the step, dy * (level - t) inside the table's range and dy * level
    outside; to x, dy.

    Args:
        dy: the gradient to the result.
        x: [O, ...], the values that were rounded.
        levels: int8, [L] or [blocks of 64 channels, L], ascending.
        s: the steps that were used.
        clip: whether the gradient to x is 0 outside the table's range.
    """
    scaled = x.detach().float() * s.spread(s.inverse, x)
    tables = _tables(x, levels)
    blocks = torch.arange(x.shape[0], device=x.device) // 64 if len(tables) > 1 else 0
    shape = (-1,) + (1,) * (x.dim() - 1)
    low, high = tables[blocks, 0].reshape(shape), tables[blocks, -1].reshape(shape)
    inside = (scaled >= low) & (scaled <= high)
    nearest = _nearest(scaled, levels)
    terms = dy.float() * torch.where(inside, nearest - scaled, nearest)
    return (torch.where(inside, dy, 0.0) if clip else dy), s.gathered(terms)


def range_of(x: Tensor, axis: int | None, relu: bool) -> tuple[Tensor, Tensor]:
    """Range of the finite values, float32 [2] or [2, C], and how many are not finite, int64 [1].

    With relu the range of max(x, 0). Without finite values it is (inf, -inf).
    """
    values = x.float()
    good = values.isfinite()
    low, high = torch.where(good, values, math.inf), torch.where(good, values, -math.inf)
    if relu:
        low, high = (torch.where(good, ends.clamp_min(0.0), ends) for ends in (low, high))
    others = [d for d in range(x.dim()) if d != axis]
    if others or axis is None:
        low, high = low.amin(others), high.amax(others)
    return torch.stack((low, high)) + 0.0, (~good).sum().reshape(1)


def steps_of_range(state: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """float32 scale and zero point, [1] or [C], of a range [2] or [2, C] widened to hold 0."""
    low, high = state.reshape(2, -1).unbind()
    largest = torch.finfo(torch.float32).max
    low, high = low.clamp(-largest, 0.0), high.clamp(0.0, largest)
    if symmetric:
        scale = (low.neg().maximum(high) / qmax).clamp_min(MIN_SCALE)
        return scale, torch.zeros_like(scale)
    scale = ((high - low).clamp_max(largest) / (qmax - qmin)).clamp_min(MIN_SCALE)
    return scale, ((-low / scale).round() + qmin).clamp(qmin, qmax)


SAMPLE = 1 << 12
"""Values that the search for a range looks at."""

_RATIOS = tuple(i / 20 for i in range(20, 3, -1))


def shrunk(x: Tensor, now: Tensor, relu: bool, codes: tuple[int, int, bool]) -> Tensor:
    """The range ``now`` times the ratio with the smallest squared error, float32 [2].

    The ratios are 1.00, 0.95 ... 0.20; of equal errors the largest ratio is taken. At most 4,096
    values are looked at, those that are not finite as 0.

    Args:
        x: the values.
        now: their smallest and largest, float32 [2].
        relu: whether max(x, 0) is taken first.
        codes: qmin, qmax, and whether the codes are symmetric.
    """
    flat = x.reshape(-1)
    values = _values(flat[:: -(-flat.numel() // SAMPLE)], relu)
    values = torch.where(values.isfinite(), values, 0.0)
    candidates = [now * ratio for ratio in _RATIOS]
    errors = []
    for candidate in candidates:
        scale, zero = steps_of_range(candidate, *codes)
        s = steps(scale, zero, Options(*codes[:2]))
        difference = quantized(values, s, False) - values
        wide = difference.double() if values.device.type != "mps" else difference
        errors.append(wide.square().sum())
    return torch.stack(candidates)[torch.stack(errors).argmin()]
