"""How much faster than torch's float32 octavo was where it was measured: one table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SPEEDS", "Speed", "speed_of"]


@dataclass(frozen=True)
class Speed:
    """Time of the float model over that of the quantized one, a range; None where unknown.

    basis: what was measured, and on what; or why nothing is known.
    """

    low: float | None
    high: float | None
    basis: str

    def __str__(self) -> str:
        if self.low is None:
            return f"unknown: {self.basis}"
        return f"{self.low:g} to {self.high:g} times as fast as float; {self.basis}"


_ZEN5 = "AMD Zen 5, 1 thread, torch fp32 eager"

SPEEDS: dict[tuple[str, str], Speed] = {
    ("avx512_vnni", "convolutional, static"): Speed(
        4.9, 7.8, f"measured on {_ZEN5}: ResNet-18 and -50, 224 px, batch 1 and 16"
    ),
    ("avx512_vnni", "depthwise, static"): Speed(
        11, 13, f"measured on {_ZEN5}: MobileNetV2, 224 px, batch 1 and 16"
    ),
}
"""(instruction set, kind of network) to what was measured: examples/bench/README.md."""


def speed_of(isa: str, kind: str) -> Speed:
    """The row of the table, or why there is none."""
    found = SPEEDS.get((isa, kind))
    if found is not None:
        return found
    others = [key[0] for key in SPEEDS if key[1] == kind]
    if others:
        return Speed(None, None, f"measured on {', '.join(others)} only, not on {isa}")
    return Speed(None, None, f"no network of this kind was measured ({kind})")
