"""Rounding methods, float weights to integer codes: one file and one row of `METHODS` each."""

from __future__ import annotations

from octavo.rounding.bias import correct_bias
from octavo.rounding.method import Method
from octavo.rounding.methods.adaround import adaround
from octavo.rounding.methods.gptq import gptq
from octavo.rounding.methods.hqq import hqq
from octavo.rounding.methods.nearest import nearest, nearest_of_layer
from octavo.rounding.methods.qdrop import qdrop
from octavo.rounding.methods.squant import squant
from octavo.rounding.run import choose, round_model, rounded_plainly

__all__ = [
    "METHODS",
    "Method",
    "choose",
    "correct_bias",
    "nearest",
    "round_model",
    "rounded_plainly",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("nearest", nearest_of_layer),
        Method("squant", squant),
        Method("hqq", hqq),
        Method("gptq", from_data=gptq),
        Method("adaround", from_data=adaround),
        Method("qdrop", from_data=qdrop, blockwise=True, end_to_end=True),
    )
}
"""Name of a method to its row."""
