"""The advisor on networks of torchvision, timm and transformers: its calls run as given, its sizes are exact.

Long size: all ten, every target, with and without data. Short size: three small ones.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch

from conftest import FULL, ROOT, missing

TARGETS = ("phone", "server", "edge", "notebook")
SHORT = {
    "shufflenet_v2_x1_0": ("phone",),
    "convnext_atto": ("server",),
    "distilbert": ("notebook",),
}
ALL = (
    *("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "swin_t"),
    *("vit_small_patch16_224", "efficientnet_lite0", "convnext_atto"),
    *("distilbert", "gpt2", "llama_small"),
)


@pytest.fixture(scope="module")
def table() -> Any:
    """examples/table_advice.py as a module."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import table_advice

        return table_advice
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", ALL if FULL else SHORT)
def test_calls_run_as_given(name: str, table: Any) -> None:
    assert tuple(table.NETWORKS) == ALL
    network = table.NETWORKS[name]
    for package in {"torchvision", network.package}:  # Its images come from there, too.
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing(f"{package} is not installed: {error}")
    model = network.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for target in TARGETS if FULL else SHORT[name]:
        for with_data in (False, True) if FULL else (True,):
            row = table.measure(network, model, target, with_data)
            print(name, target, with_data, row)
            assert row.call.startswith("octavo.quantize(model, ")
            assert row.said == row.found and row.file_said == row.file_found
            assert row.noise is None or row.noise > 3, row
            floats = sum(t.nbytes for t in before.values())
            assert row.found < 0.5 * floats, row
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
