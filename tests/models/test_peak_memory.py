"""Quantizing takes three times the float model and the activations of one batch at most."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import peak_memory

NETWORKS = [
    pytest.param("small", 8, 8, 64, id="small network with depthwise convolutions"),
    pytest.param("mobilenet_v2", 8, 4, 224, id="mobilenet_v2", marks=pytest.mark.slow),
    pytest.param("resnet18", 8, 4, 224, id="resnet18", marks=pytest.mark.slow),
    pytest.param("resnet50", 8, 4, 224, id="resnet50", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "batch", "batches", "size"), NETWORKS)
def test_peak_memory(name: str, batch: int, batches: int, size: int) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are read as Linux tells them")
    if name != "small" and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    peak = peak_memory.peak_of(name, batch, batches, size)
    print(peak)
    assert peak.grown <= peak.bound
    assert peak.grown > peak.activations // 8, "nothing was measured"
