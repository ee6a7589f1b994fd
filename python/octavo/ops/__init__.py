"""The operators as typed Python functions. Only this package touches ``torch.ops.octavo``."""

import octavo.library  # noqa: F401  # It loads the operators.
from octavo.ops.checks import as_float32, is_float32
from octavo.ops.clip_error import clip_error
from octavo.ops.embedding_lowbit import embedding_lowbit
from octavo.ops.fake_quantize.clipped import fake_quantize_clipped, fake_quantize_clipped_watched
from octavo.ops.fake_quantize.codes import saved_as_codes
from octavo.ops.fake_quantize.learned import fake_quantize_learned, fake_quantize_learned_watched
from octavo.ops.fake_quantize.levels import fake_quantize_levels
from octavo.ops.fake_quantize.observe import Observed, observe_fake_quantize
from octavo.ops.fake_quantize.plain import fake_quantize
from octavo.ops.linear_dynamic import linear_dynamic
from octavo.ops.linear_lowbit import linear_lowbit, linear_lowbit_static
from octavo.ops.minmax import histogram, minmax, minmax_per_channel
from octavo.ops.pack_lowbit import (
    LowbitWeight,
    dequantize_lowbit,
    lowbit_groups,
    pack_lowbit,
    unpack_lowbit,
)
from octavo.ops.pack_weight import (
    active_isa,
    pack_bits,
    pack_weight,
    panel_is_current,
    unpack_bits,
    unpack_weight,
)
from octavo.ops.quantize import dequantize, quantize, quantize_per_channel
from octavo.ops.recurrent import recurrent, recurrent_cell
from octavo.ops.run_region import region_constants, run_region

__all__ = [
    "LowbitWeight",
    "Observed",
    "active_isa",
    "as_float32",
    "clip_error",
    "dequantize",
    "dequantize_lowbit",
    "embedding_lowbit",
    "fake_quantize",
    "fake_quantize_clipped",
    "fake_quantize_clipped_watched",
    "fake_quantize_learned",
    "fake_quantize_learned_watched",
    "fake_quantize_levels",
    "histogram",
    "is_float32",
    "linear_dynamic",
    "linear_lowbit",
    "linear_lowbit_static",
    "lowbit_groups",
    "minmax",
    "minmax_per_channel",
    "observe_fake_quantize",
    "pack_bits",
    "pack_lowbit",
    "pack_weight",
    "panel_is_current",
    "quantize",
    "quantize_per_channel",
    "recurrent",
    "recurrent_cell",
    "region_constants",
    "run_region",
    "saved_as_codes",
    "unpack_bits",
    "unpack_lowbit",
    "unpack_weight",
]
