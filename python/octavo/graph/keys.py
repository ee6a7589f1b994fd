"""Names of what is stored in integers: keys of ranges, and values that a flow has a second time.

Text is made and cut here only. It stands in files and messages; ranges in memory have typed keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Entry", "Narrow", "RangeKey", "SiteKey", "ValueKey", "is_narrow", "wide"]


@dataclass(frozen=True)
class SiteKey:
    """The input of a static layer that runs alone."""

    layer: str

    def __str__(self) -> str:
        return f"site:{self.layer}"


@dataclass(frozen=True)
class ValueKey:
    """A value inside a region of the flow at a path."""

    path: str
    value: str

    def __str__(self) -> str:
        return f"{self.path}:{self.value}"


RangeKey = SiteKey | ValueKey
"""What has a range of its own."""


class Narrow(NamedTuple):
    """A value that is stored a second time, in fewer bits; ``str`` is its name in the flow."""

    value: str
    bits: int

    def __str__(self) -> str:
        return f"{self.value}@{self.bits}"


def is_narrow(name: str) -> bool:
    """Whether a name is that of a `Narrow` value."""
    return "@" in name


def wide(name: str) -> str:
    """The value behind a name: its own, or the one that a `Narrow` is made from."""
    return name.partition("@")[0]


class Entry(NamedTuple):
    """A region's input once it is fake-quantized; ``str`` is its name in a trainee's flow."""

    value: str
    region: str

    def __str__(self) -> str:
        return f"{self.value}|{self.region}"
