"""Quantized layers and the runtime of captured modules."""

from octavo.nn.conv import QConv1d, QConv2d
from octavo.nn.embedding import QEmbedding
from octavo.nn.layer import QLayer
from octavo.nn.linear import QLinear
from octavo.nn.registry import canonical_weight, float_reasons, quantized_class, register

__all__ = [
    "QConv1d",
    "QConv2d",
    "QEmbedding",
    "QLayer",
    "QLinear",
    "canonical_weight",
    "float_reasons",
    "quantized_class",
    "register",
]
