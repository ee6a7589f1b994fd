"""What a row of the table of rounding methods is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from octavo.numerics.codes import Codes
from octavo.numerics.scheme import Scheme
from octavo.rounding.lockstep import Lockstep, Pause

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """A way from float weights to codes; one of the two functions is there.

    Attributes:
        from_weight: (float layer, its canonical weight, scheme) -> codes, without data.
        from_data: (runs, pause) -> codes of the layers of the pause, biases fitted.
        blockwise: whether it wants whole blocks of captured modules.
        end_to_end: whether scales and biases are learned at the end, for the outputs of the model.
    """

    name: str
    from_weight: Callable[[nn.Module, Tensor, Scheme], Codes] | None = None
    from_data: Callable[[Lockstep, Pause], dict[str, Codes]] | None = None
    blockwise: bool = False
    end_to_end: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether it works on batches."""
        return self.from_data is not None
