"""One exception family, one message form: ``<where>: <expected>, got <actual>. <what to do>``."""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "NothingQuantizedError",
    "OctavoError",
    "describe",
]


class OctavoError(Exception):
    """Base of every error that octavo defines."""


class NothingQuantizedError(OctavoError, ValueError):
    """No layer was left to quantize."""


class CalibrationError(OctavoError, ValueError):
    """Calibration data did not give every needed range."""


class CheckpointError(OctavoError, ValueError):
    """A file is not a valid octavo checkpoint for this model."""


def describe(value: object) -> str:
    """``repr(value)`` cut at 80 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
