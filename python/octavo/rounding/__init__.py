"""Rounding methods, float weights to integer codes: one file and one row of `METHODS` each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from octavo.rounding.bias import correct_bias
from octavo.rounding.codes import Codes
from octavo.rounding.nearest import nearest
from octavo.scheme import Scheme

__all__ = ["METHODS", "Codes", "correct_bias", "nearest"]

METHODS: dict[str, Callable[[Tensor, Tensor | None, Scheme], Codes]] = {
    "nearest": nearest,
}
"""Name of a method to its function (weight, bias, scheme) -> Codes."""
