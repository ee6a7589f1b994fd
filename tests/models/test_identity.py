"""The integer networks give the same bits on every ISA, for any thread count, batch and memory format."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hash_outputs
import networks
import octavo


@pytest.mark.parametrize("kind", ["resnet20", pytest.param("probe", marks=pytest.mark.slow)])
def test_one_hash(kind: str, data: Path, tmp_path: Path, full: bool) -> None:
    probe = kind == "probe"
    model = networks.mobilenet_probe(data) if probe else networks.resnet20(data)
    train, _ = networks.cifar(data, "train", 0, 128)
    small = octavo.quantize(model, 8, data=list(networks.batches(train, 64, probe)), progress=False)
    x, _ = networks.cifar(data, "test", 0, 64)
    x = next(networks.batches(x, 64, probe))
    file, images = tmp_path / "small.safetensors", tmp_path / "images.pt"
    octavo.save(small, file)
    torch.save(x, images)

    hashes: dict[str, list[str]] = {}
    before = octavo.isa()
    for isa in octavo.isas():
        octavo.set_isa(isa)
        for name, value in hash_outputs.settings(small, x, brief=not full).items():
            hashes.setdefault(value, []).append(f"set_isa {isa}, {name}")
    octavo.set_isa(before)
    for isa in octavo.isas():
        result = subprocess.run(
            [sys.executable, hash_outputs.__file__, kind, str(file), str(images)],
            env={
                **os.environ,
                "OCTAVO_ISA": isa,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            },
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == f"isa {isa}", lines[0]
        assert len(lines) > 8
        for line in lines[1:]:
            value, name = line.split(" ", 1)
            hashes.setdefault(value, []).append(f"process {isa}, {name}")
    assert len(hashes) == 1, {k[:8]: v for k, v in hashes.items()}
    count = len(next(iter(hashes.values())))
    print(f"{kind}: {count} settings on {octavo.isas()}, one hash {next(iter(hashes))[:16]}")
    # Test the test: another image gives another hash, so the hash does depend on the output.
    assert hash_outputs.digest(small, x.flip(0), 64) not in hashes
