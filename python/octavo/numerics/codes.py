"""What every rounding method returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.numerics.grids import spread
from octavo.numerics.scheme import Scheme

__all__ = ["Codes"]


@dataclass(frozen=True, eq=False)
class Codes:
    """A layer's weight in integers: real weight = codes * scale, per output channel or group.

    Attributes:
        codes: int8, shape and order of the torch weight [O, ...]; where the grid is a table these
            are the levels themselves.
        scale: float32 [O], normal, negative only where a trained BatchNorm's gamma was; [O, groups]
            where the scheme has groups of inputs.
        bias: float32 [O], bias correction included, or None.
        levels: int8 [tables, 2^bits], one table for 64 output channels; None for the linear grid.
        zero_point: uint8 [O, groups]; None where the scheme is symmetric. It is already subtracted
            from ``codes``.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    scheme: Scheme
    levels: Tensor | None = None
    zero_point: Tensor | None = None

    def dequantize(self) -> Tensor:
        """float32 of the weight's shape: codes * scale."""
        shape = (-1,) + (1,) * (self.codes.dim() - 1)
        scale = self.scale.view(shape) if self.scale.dim() == 1 else self.spread()
        return self.codes.to(torch.float32) * scale

    def spread(self) -> Tensor:
        """[O, K] or [O, 1]: the scale of each weight of a row."""
        return spread(self.scale, self.scheme.group_size, self.codes[:1].numel())
