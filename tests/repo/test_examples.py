"""The examples run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.build

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
BENCHMARKS = EXAMPLES.parent / "benchmarks"


def run(*command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_quantize_resnet18(torchvision: object) -> None:
    out = run(str(EXAMPLES / "quantize_resnet18.py"))
    assert "same bits: True" in out and "region" in out


def test_inspect_plan() -> None:
    out = run(str(EXAMPLES / "inspect_plan.py"))
    assert "region #0: input -> _8" in out and "the plan comes back from its file: True" in out
    table = out[out.index("layer  kind") :].splitlines()
    assert [row.split()[2] for row in table[2:5]] == ["8", "4", "8"]


def test_add_a_module() -> None:
    out = run(str(EXAMPLES / "add_a_module.py"))
    assert "3 of 3 layers in integers" in out and "same bits: True" in out
    decibels = [float(line.split()[-2]) for line in out.splitlines() if line.endswith(" dB")]
    assert len(decibels) == 3 and min(decibels[:2]) > 30 and decibels[2] > 14


def test_table_torchvision(torchvision: object) -> None:
    out = run(str(BENCHMARKS / "table_torchvision.py"), "--models", "squeezenet1_1", "--size", "64")
    assert out.count("same bits") == 2


def test_accuracy_size_time(tmp_path: Path) -> None:
    out = run(str(EXAMPLES / "accuracy_size_time.py"), "--bits", "8", "4", "--effort", "fast",
              "--save", str(tmp_path / "front.png"))  # fmt: skip
    assert "8 bits" in out and (tmp_path / "front.png").stat().st_size > 10_000


def test_benchmark_runs_and_counts_missing_engines(torchvision: object) -> None:
    out = run(
        str(BENCHMARKS / "models.py"),
        *("--models", "squeezenet1_1", "--batches", "1", "--threads", "1"),
        *("--rounds", "1", "--seconds", "0.01", "--engines", "octavo", "torch_fp32"),
    )
    assert "octavo ISA" in out and "not measured" not in out


def test_train_cifar(data: Path) -> None:
    """Forty steps down to 3 bits: by way of 4, from 59 % of these images before the first one."""
    out = run(
        str(EXAMPLES / "train_cifar.py"),
        *("--bits", "3", "3", "--minutes", "0", "--epochs", "2", "--shares", "0.5", "0.5"),
        *("--limit", "2560", "--test-images", "1000", "--quiet", "--floor", "80"),
    )
    assert "promise of one step kept" in out and '"integer_accuracy"' in out


@pytest.mark.slow
def test_train_cifar_probe(data: Path) -> None:
    """56 steps in 4 bits: 71.6 % of 500 images on the day this was written."""
    run(
        str(EXAMPLES / "train_cifar.py"),
        *("--network", "probe", "--bits", "4", "8", "--minutes", "0", "--epochs", "0.6"),
        *("--batch", "64", "--lr", "0.005", "--limit", "6000", "--test-images", "500"),
        *("--quiet", "--floor", "65"),
    )


def test_transfer_learning(data: Path) -> None:
    out = run(str(EXAMPLES / "transfer_learning.py"), "--epochs", "2", "--floor", "85")
    assert "every site within one step: True" in out


def test_train_two_processes() -> None:
    out = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(str(EXAMPLES / "train_two_processes.py"), "--epochs", "1", "--floor", "95"),
    )
    assert "the same integers in every process: True" in out


@pytest.mark.slow
def test_benchmark_with_every_engine(torchvision: object) -> None:
    out = run(
        str(BENCHMARKS / "models.py"),
        *(
            "--models",
            "squeezenet1_1",
            "--batches",
            "1",
            "--threads",
            "2",
            "--rounds",
            "1",
            "--seconds",
            "0.01",
        ),
    )
    assert "openvino_int8" in out
