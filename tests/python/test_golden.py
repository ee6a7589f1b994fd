"""Files and calls of earlier versions give the outputs that they gave (see tests/golden)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import octavo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from calls import CALLS, CALLS_IN_FLOAT, FILES, digest, network, output, quantized

FOLDER = Path(__file__).resolve().parents[1] / "golden"
HASHES = json.loads((FOLDER / "hashes.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_file_of_an_earlier_version_has_its_output(name: str) -> None:
    call = FILES[name]
    model = octavo.load(FOLDER / "files" / f"{name}.safetensors", network(call[0]))
    assert digest(model, call) == HASHES["files"][name]


@pytest.mark.parametrize("name", CALLS)
def test_call_has_the_output_that_it_had(name: str) -> None:
    assert digest(quantized(CALLS[name]), CALLS[name]) == HASHES["calls"][name]


@pytest.mark.parametrize("name", CALLS_IN_FLOAT)
def test_call_that_solves_in_float_is_near_the_output_that_it_had(name: str) -> None:
    # Whether a channel keeps its correction may depend on last bits.
    before = load_file(FOLDER / "outputs.safetensors")[name]
    now = output(quantized(CALLS_IN_FLOAT[name]), CALLS_IN_FLOAT[name])
    assert torch.allclose(now, before, rtol=0.0, atol=2e-3 * float(before.abs().max()))


def test_hashes_depend_on_the_weights() -> None:
    """So that the comparison can fail."""
    call = CALLS["mlp_average"]
    model = network(call[0])
    with torch.no_grad():
        model[0].weight[3, 5] += 0.5
    changed = octavo.quantize(model, progress=False, **call[2])
    assert digest(changed, call) != HASHES["calls"]["mlp_average"]
