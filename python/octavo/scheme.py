"""How a tensor is stored in few bits: frozen values, valid once they exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Activations", "QParams", "Scheme"]

Activations = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class Scheme:
    """How a weight is stored: ``bits`` (2..8), level grid, and inputs that share a scale.

    ``group_size`` 0 means one scale per output channel.
    """

    bits: int = 8
    grid: str = "linear"
    group_size: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"Scheme: bits must lie in 2..8, got {self.bits}.")

    @property
    def qmax(self) -> int:
        """Largest code: 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def qmin(self) -> int:
        """Smallest code: -qmax for 8..5 bits, -2^(bits-1) for 4..2 bits."""
        return -self.qmax if self.bits >= 5 else -(1 << (self.bits - 1))


@dataclass(frozen=True)
class QParams:
    """Affine parameters of one activation: real = scale * (q - zero_point), q in 0 .. 2^bits - 1.

    ``scale`` is a Python float that is exactly representable in float32.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def qmax(self) -> int:
        """Largest code, 2^bits - 1."""
        return (1 << self.bits) - 1
