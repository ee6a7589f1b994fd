"""What tests read from quantized models: report rows, region programs, multiply-adds, bytes of a state."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import octavo
from octavo import _C


def rows_of(model: nn.Module) -> dict[str, Any]:
    """Report rows by layer name; each has bits (0 for float), region and reason."""
    return {row.layer.name: row.layer for row in octavo.report(model).rows}


def state_bytes(model: nn.Module) -> str:
    """One hash over every parameter and buffer, names and values."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def integer_share(model: nn.Module, small: nn.Module, *inputs: Any) -> float:
    """Multiply-adds that octavo's operators counted in `small`, as a share of all that the float model does."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
        _C.reset_integer_macs()
        small(*inputs)
        return float(_C.integer_macs()) / (counter.get_total_flops() / 2)


def all_tensors(value: Any) -> list[Tensor]:
    """Every tensor inside a nested result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in all_tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in all_tensors(v)]
    return []
