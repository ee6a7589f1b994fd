"""AdaRound's variables: for each weight a share h in 0..1 of the level above over the one below.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020), section 3.2:
h is a stretched and clipped sigmoid of v, and a penalty drives it to its ends while v is learned.
Theirs has an exponent that falls over ten thousands of steps. In the hundreds taken here it left up
to 47 % of the variables between, and rounding those cost more than all had gained: in blocks of
ResNet-20 at 4 bits errors of 1.2 to 5.6 times those at the start. So its strength grows instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.numerics.grids import neighbours
from octavo.numerics.scheme import Scheme

__all__ = ["Soft", "inverse", "penalty", "share"]

_ZETA, _GAMMA = 1.1, -0.1
_WARM_UP = 0.2  # Share of the steps without penalty.
_GROWTH = 1000.0  # Of the penalty from then on.
_SURE = 0.95  # Share of the level that is started from.


def share(v: Tensor) -> Tensor:
    """Shares h of the variables v."""
    return (torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """The variables v of shares that lie inside 0..1."""
    return -((_ZETA - _GAMMA) / (h - _GAMMA) - 1).log()


def penalty(v: Tensor, done: float) -> Tensor | None:
    """The sum of 1 - (2 h - 1)^2 over all shares h, times a factor that grows with the steps.

    None in the first fifth of the steps, which have no penalty.

    Args:
        v: the variables of the shares, any shape.
        done: share of the steps taken, 0..1.
    """
    grown = (done - _WARM_UP) / (1 - _WARM_UP)
    if grown <= 0:
        return None
    strength: float = _GROWTH**grown
    return strength * (1 - (2 * share(v) - 1).square()).sum()


class Soft:
    """Weights between two levels each.

    Args:
        low: levels below. high: levels above, of one shape.
        h: shares of ``high`` to start from.
    """

    def __init__(self, low: Tensor, high: Tensor, h: Tensor) -> None:
        self.low, self.high = low, high
        self.v = inverse(h.clamp(0.02, 0.98)).requires_grad_()

    @classmethod
    def beside(
        cls,
        start: Tensor,
        u: Tensor,
        scheme: Scheme,
        levels: Tensor | None,
        zero_point: Tensor | None,
    ) -> Soft:
        """Nearly at levels [R, K], between them and the next ones on the side of weights.

        Args:
            start: the levels.
            u: the weights, in units of the scale.
            scheme: of the weights.
            levels: of the grid, as in `octavo.numerics.grids.neighbours`.
            zero_point: of rows, as there.
        """
        toward = torch.where(u >= start, start + 0.25, start - 0.25)
        low, high = neighbours(toward, scheme, levels, zero_point)
        h = torch.full_like(u, 1 - _SURE).masked_fill_(start >= high, _SURE)
        return cls(low, high, h)

    def levels(self) -> Tensor:
        """Levels with shares between."""
        return self.low + share(self.v) * (self.high - self.low)

    def hard(self) -> Tensor:
        """The levels chosen: the one above where h is a half and more."""
        return torch.where(self.v.detach() >= 0, self.high, self.low)
