"""How much faster than torch's float32 octavo was where it was measured: one table."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.advice.figures import figure

__all__ = ["SPEEDS", "Speed", "speed_of"]


@dataclass(frozen=True)
class Speed:
    """Time of the float model over that of the quantized one, a range; None where unknown.

    Attributes:
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


def _measured(networks: tuple[str, ...], called: str) -> Speed:
    gains = [
        float(figure("networks on Zen 5", (row,), "torch fp32"))
        / float(figure("networks on Zen 5", (row,), "octavo"))
        for network in networks
        for row in (f"{network}, 1", f"{network}, 16")
    ]
    low, high = (float(f"{gain:.2g}") for gain in (min(gains), max(gains)))
    return Speed(low, high, f"measured on {_ZEN5}: {called}, 224 px, batch 1 and 16")


SPEEDS: dict[tuple[str, str], Speed] = {
    ("avx512_vnni", "convolutional, static"): _measured(
        ("resnet18", "resnet50"), "ResNet-18 and -50"
    ),
    ("avx512_vnni", "depthwise, static"): _measured(("mobilenet_v2",), "MobileNetV2"),
}
"""(instruction set, kind of network) to what was measured: benchmarks/README.md."""


def speed_of(isa: str, kind: str) -> Speed:
    """The row of the table, or why there is none."""
    found = SPEEDS.get((isa, kind))
    if found is not None:
        return found
    others = [key[0] for key in SPEEDS if key[1] == kind]
    if others:
        return Speed(None, None, f"measured on {', '.join(others)} only, not on {isa}")
    return Speed(None, None, f"no network of this kind was measured ({kind})")
