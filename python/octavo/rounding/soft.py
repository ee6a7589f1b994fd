"""AdaRound's variables: for each weight a share h in 0..1 of the level above over the one below.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020), section 3.2:
h is a stretched and clipped sigmoid of v, and a penalty drives it to its ends while v is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Soft", "inverse", "penalty", "share"]

_ZETA, _GAMMA = 1.1, -0.1
_BETA = (20.0, 2.0)
_WARM_UP = 0.2  # Share of the steps without penalty.


def share(v: Tensor) -> Tensor:
    """Shares h of the variables v."""
    return (torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """The variables v of shares that lie inside 0..1."""
    return -((_ZETA - _GAMMA) / (h - _GAMMA) - 1).log()


def penalty(v: Tensor, done: float) -> Tensor | None:
    """The sum of 1 - |2 h - 1|^beta when ``done`` (0..1) of the steps are; None in the first."""
    left = (done - _WARM_UP) / (1 - _WARM_UP)
    if left <= 0:
        return None
    beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - left)
    return (1 - (2 * share(v) - 1).abs().pow(beta)).sum()


class Soft:
    """Weights between two levels each.

    Args:
        low: levels below. high: levels above, of one shape.
        h: shares of ``high`` to start from.
    """

    def __init__(self, low: Tensor, high: Tensor, h: Tensor) -> None:
        self.low, self.high = low, high
        self.v = inverse(h.clamp(0.02, 0.98)).requires_grad_()

    def levels(self) -> Tensor:
        """Levels with shares between."""
        return self.low + share(self.v) * (self.high - self.low)

    def hard(self) -> Tensor:
        """The levels chosen: the one above where h is a half and more."""
        return torch.where(self.v.detach() >= 0, self.high, self.low)
