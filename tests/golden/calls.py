"""The calls whose files and outputs are kept: a name, a network, and what `octavo.quantize` is given."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from models import NETWORKS, filled

Call = tuple[str, bool, dict[str, Any]]  # network, whether data is given, arguments of quantize

# Files in files/ were written by these calls.
FILES: dict[str, Call] = {
    "cnn_dynamic": ("residual", False, {"bits": 8}),
    "cnn_static": ("residual", True, {"bits": 8}),
    "cnn_4_bits_static": ("residual", True, {"bits": (4, 4), "grid": "apot"}),
    "mobile_static": ("mobile", True, {"bits": 8}),
    "mlp_4_bits": ("mlp", False, {"bits": 4, "group_size": 32}),
    "mlp_2_bits_affine": ("mlp", False, {"bits": 2, "symmetric": False}),
    "words_3_bits_levels": ("words", False, {"bits": 3, "grid": "nf", "activations": "float"}),
    "lstm_dynamic": ("lstm", False, {"bits": 8}),
    "gru_4_bits_static": ("gru", True, {"bits": 4}),
    "attention_static": ("attention", True, {"bits": 8}),
    "trainee_cnn": ("residual", True, {"bits": (4, 4), "qat": True}),
    "trainee_attention": ("attention", False, {"bits": 8, "qat": True}),
}

# These are run again by every test, and give the same bits on every machine.
CALLS: dict[str, Call] = {
    "cnn_dynamic": ("residual", False, {"bits": 8}),
    "cnn_static": ("residual", True, {"bits": 8, "effort": "fast"}),
    "cnn_mixed": (
        "residual", True,
        {"bits": {"*": 4, "@first": 8, "@last": 8}, "ranges": "mse", "effort": "fast"},
    ),
    "mobile_static": ("mobile", True, {"bits": (8, 6), "effort": "fast"}),
    "mobile_squant": ("mobile", False, {"bits": 4, "rounding": "squant"}),
    "mlp_average": ("mlp", False, {"bits": 4.5, "grid": "kmeans"}),
    "mlp_hqq_affine": ("mlp", False, {"bits": 4, "rounding": "hqq", "symmetric": False}),
    "words_levels": ("words", False, {"bits": 3, "grid": "log", "activations": "float"}),
    "lstm_dynamic": ("lstm", False, {"bits": 8}),
    "gru_static": ("gru", True, {"bits": 4, "effort": "fast"}),
    "attention_static": ("attention", True, {"bits": 8, "exclude": "up", "effort": "fast"}),
    "trainee_frozen": ("residual", True, {"bits": 4, "qat": True}),
}  # fmt: skip

# These too; what they solve in float has last bits that depend on the machine, so outputs are compared as numbers.
CALLS_IN_FLOAT: dict[str, Call] = {
    "cnn_balanced": ("residual", True, {"bits": 8}),
    "mobile_balanced": ("mobile", True, {"bits": 8}),
    "mlp_gptq": ("mlp", True, {"bits": 3, "rounding": "gptq"}),
    "attention_balanced": ("attention", True, {"bits": 8}),
}


def network(name: str) -> nn.Module:
    return filled(NETWORKS[name][0](), seed=len(name))


def inputs(name: str, seed: int) -> Tensor:
    return NETWORKS[name][1](seed)


def quantized(call: Call) -> nn.Module:
    name, has_data, arguments = call
    torch.manual_seed(0)
    data = [inputs(name, seed) for seed in (1, 2, 3)] if has_data else None
    return octavo.quantize(network(name), data=data, progress=False, **arguments)


def output(model: nn.Module, call: Call) -> Tensor:
    """The output on an input that was not calibrated on; a trainee is frozen first."""
    if call[2].get("qat"):
        # Nothing trained it: its steps have not moved.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            model = octavo.freeze(model)
    with torch.no_grad():
        return model(inputs(call[0], 9)).contiguous()


def digest(model: nn.Module, call: Call) -> str:
    return hashlib.sha256(output(model, call).numpy().tobytes()).hexdigest()
