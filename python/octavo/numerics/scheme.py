"""How a tensor is stored in few bits: frozen values, valid once they exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MIN_SCALE", "Activations", "QParams", "Scheme", "default_group_size"]

Activations = Literal["float", "dynamic", "static"]

MIN_SCALE = 2.0**-126
"""Smallest scale of anything: the smallest normal number of float32, and of bfloat16. Its inverse
is finite. What lies within a range too small for it is zero. csrc/kernels/types.h has it too.
"""


@dataclass(frozen=True)
class Scheme:
    """How a weight is stored: ``bits`` (2..8), level grid, and inputs that share a scale.

    ``group_size`` 0 means one scale per output channel; else a multiple of 16 in 16..256, the last
    group of a row may be shorter, and scales are bfloat16 numbers. Without ``symmetric`` each scale
    has a zero point z in 0 .. 2^bits - 1, and codes stand for -z .. 2^bits - 1 - z. With
    ``per_tensor`` all output channels have one and the same scale.
    """

    bits: int = 8
    grid: str = "linear"
    group_size: int = 0
    symmetric: bool = True
    per_tensor: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"Scheme: bits must lie in 2..8, got {self.bits}.")
        if self.group_size and (self.group_size % 16 or not 16 <= self.group_size <= 256):
            raise ValueError(
                "Scheme: group_size must be 0 or a multiple of 16 in 16..256, got "
                f"{self.group_size}."
            )
        if not self.symmetric and (self.grid != "linear" or self.bits == 8):
            raise ValueError(
                "Scheme: symmetric must be True for 8 bits and for level tables, got False for "
                f"{self.bits} bits, {self.grid!r}."
            )
        if self.per_tensor and self.group_size:
            raise ValueError(
                f"Scheme: group_size must be 0 with per_tensor, got {self.group_size}."
            )

    @property
    def granularity(self) -> str:
        """What has a scale of its own, in words."""
        per = f"group of {self.group_size}" if self.group_size else "channel"
        return ("tensor" if self.per_tensor else per) + ("" if self.symmetric else ", affine")

    @property
    def codes(self) -> int:
        """How many codes there are: 2^bits."""
        return 1 << self.bits

    @property
    def is_plain(self) -> bool:
        """Whether one scale for each output channel is all there is, as regions need it."""
        return self.group_size == 0 and self.symmetric

    @property
    def qmax(self) -> int:
        """Largest code: 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def qmin(self) -> int:
        """Smallest code: -qmax for 8..5 bits, -2^(bits-1) for 4..2 bits."""
        return -self.qmax if self.bits >= 5 else -(1 << (self.bits - 1))


def default_group_size(bits: int, features: int) -> int:
    """The default number of inputs that share a scale, in a layer without a kernel.

    0 (one scale a row) for 5..8 bits; else the largest of 128, 64, 32 that divides the number of
    inputs, else 32, and 0 where that is the whole row.

    Args:
        bits: width of the codes, 2..8.
        features: inputs of the layer.
    """
    if bits > 4:
        return 0
    size = next((size for size in (128, 64, 32) if features % size == 0), 32)
    return size if size < features else 0


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
