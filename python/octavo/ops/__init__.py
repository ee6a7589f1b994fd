"""The operators as typed Python functions. Only this package touches ``torch.ops.octavo``."""

from octavo.ops.checks import as_float32
from octavo.ops.linear_dynamic import linear_dynamic
from octavo.ops.minmax import histogram, minmax, minmax_per_channel
from octavo.ops.pack_weight import (
    active_isa,
    pack_bits,
    pack_weight,
    panel_is_current,
    unpack_bits,
    unpack_weight,
)
from octavo.ops.quantize import dequantize, quantize, quantize_per_channel
from octavo.ops.run_region import region_constants, run_region

__all__ = [
    "active_isa",
    "as_float32",
    "dequantize",
    "histogram",
    "linear_dynamic",
    "minmax",
    "minmax_per_channel",
    "pack_bits",
    "pack_weight",
    "panel_is_current",
    "quantize",
    "quantize_per_channel",
    "region_constants",
    "run_region",
    "unpack_bits",
    "unpack_weight",
]
