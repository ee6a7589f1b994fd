"""What those who write and those who read octavo's files agree on."""

from __future__ import annotations

from typing import Any

from octavo.nn.state import read_range
from octavo.numerics.scheme import QParams

__all__ = ["range_from_data", "range_to_data"]


def range_to_data(p: QParams) -> list[Any]:
    """The range of an activation as JSON data: its scale as text, so that no bit is lost."""
    return [p.scale.hex(), p.zero_point, p.bits]


def range_from_data(data: Any, name: str) -> QParams:
    """The inverse of `range_to_data`; StateError, which names ``name``, if it is no range."""
    text, zero_point, bits = data
    return read_range(float.fromhex(text), zero_point, bits, name)
