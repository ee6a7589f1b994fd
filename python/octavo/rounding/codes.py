"""What every rounding method returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.scheme import Scheme

__all__ = ["Codes"]


@dataclass(frozen=True, eq=False)
class Codes:
    """A layer's weight in integers: real weight = codes * scale, per output channel.

    codes: int8, shape and order of the torch weight [O, ...]. scale: float32 [O], normal,
      negative only where a trained BatchNorm's gamma was.
    bias: float32 [O], bias correction included, or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    scheme: Scheme

    def dequantize(self) -> Tensor:
        """float32 of the weight's shape: codes * scale."""
        shape = (-1,) + (1,) * (self.codes.dim() - 1)
        return self.codes.to(torch.float32) * self.scale.view(shape)
