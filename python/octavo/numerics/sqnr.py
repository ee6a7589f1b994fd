"""Small measures of tensors and models: signal-to-quantization-noise ratios and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["bytes_of", "decibels", "sqnr", "tensor_bytes"]


def sqnr(signal: Tensor, noisy: Tensor) -> float | None:
    """10 log10(sum signal^2 / sum (signal - noisy)^2) in dB; None where either is zero."""
    signal, noisy = signal.detach(), noisy.detach()
    power = float(signal.square().sum(dtype=torch.float64))
    noise = float((signal - noisy).square().sum(dtype=torch.float64))
    return decibels(power, noise)


def decibels(power: float, noise: float) -> float | None:
    """10 log10(power / noise), None where either is zero or not finite."""
    if not (0 < noise < math.inf and 0 < power < math.inf):
        return None
    return 10 * math.log10(power / noise)


def tensor_bytes(model: nn.Module) -> int:
    """Bytes behind the parameters and buffers of a model, shared memory counted once."""
    return bytes_of([*model.parameters(), *model.buffers()])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes behind tensors, shared memory counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
