"""Dynamic activations in training: every sample is fake-quantized over a range of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octavo import ops
from octavo.nn.fake_quantize import Monitor, is_recomputing
from octavo.numerics.scheme import MIN_SCALE

__all__ = ["FakeQuantizeDynamic"]

_QMAX = 255
_LARGEST = torch.finfo(torch.float32).max


class FakeQuantizeDynamic(nn.Module):
    """The input of a layer, as the integer layer rounds it: 8 bits, a range for each sample.

    There is nothing to learn and no state. The gradient passes, but for values that are not finite.

    Attributes:
        what: names the value in messages.
    """

    def __init__(self, what: str, monitor: Monitor) -> None:
        super().__init__()
        self.what, self.monitor = what, monitor
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [samples, ...] rounded to what its codes stand for."""
        low, high, bad = _ends(x.detach())
        if self.training and not torch.compiler.is_compiling() and not is_recomputing():
            self.calls += 1
            count = int(bad.sum())
            if count:
                ends = float(low.min()), float(high.max())
                self.monitor.report(self.what, count, self.calls, *ends)
        # As the kernels do: all in float32, the zero point from the rounded scale.
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = ((high - low).clamp_max(_LARGEST) / _QMAX).clamp_min(MIN_SCALE)
        zero = (-low / scale).clamp(0, _QMAX).round()
        return ops.fake_quantize(x, scale, zero, qmin=0, qmax=_QMAX, axis=0)


def _ends(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [samples]: smallest and largest finite value, and how many values are not finite."""
    if x.is_cpu:
        (low, high), bad = ops.minmax_per_channel(x, 0)
        return low, high, bad
    flat = x.flatten(1).float()
    finite = flat.isfinite()
    low = torch.where(finite, flat, torch.inf).amin(1)
    high = torch.where(finite, flat, -torch.inf).amax(1)
    return low, high, (~finite).sum(1)
