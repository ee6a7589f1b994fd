"""Prints what few bits cost: accuracy, resident bytes and seconds of networks with real weights.

    python examples/table_low_bits.py                     # every row, full test sets
    python examples/table_low_bits.py --rows "resnet20 W4*" --images 1000

Needs the folder with weights and images (OCTAVO_DATA, or shared/data beside the repository).
Calibration reads training images only; no test image takes part in any choice.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octavo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "models"))
import networks


@dataclass(frozen=True)
class Row:
    """One measurement. options: of `octavo.quantize`. data: images to calibrate with, 0 for none."""

    name: str
    network: str
    bits: Any
    floor: float
    data: int = 1024
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """accuracy: top-1 in percent. bytes: resident, of the quantized model."""

    accuracy: float
    bytes: int
    seconds: float


FLOAT = {"resnet20": 91.73, "mobilenet probe": 83.35}

ROWS = (
    Row("resnet20 W8", "resnet20", 8, 91.6),
    Row("resnet20 W4 balanced", "resnet20", 4, 91.5),
    Row("resnet20 W3 balanced", "resnet20", 3, 91.3),
    Row("resnet20 W2 balanced", "resnet20", 2, 88.0),
    Row("resnet20 W4 without data", "resnet20", 4, 90.6, 0),
    Row("resnet20 W4A4", "resnet20", (4, 4), 90.7),
    Row("resnet20 W3A3", "resnet20", (3, 3), 87.5),
)


def folder() -> Path:
    """The folder with weights and images."""
    here = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("OCTAVO_DATA", here.parent / "shared" / "data"))


def measure(row: Row, data: Path, images: int = 10000, calibration: int | None = None) -> Result:
    """Quantizes and counts. images: of the test set. calibration: instead of the row's own."""
    load: dict[str, Callable[[Path], nn.Module]] = {
        "resnet20": networks.resnet20,
        "mobilenet probe": networks.mobilenet_probe,
    }
    probe = row.network != "resnet20"
    model = load[row.network](data)
    batches = None
    if row.data:
        x, _ = networks.cifar(data, "train", 0, calibration or row.data)
        batches = list(networks.batches(x, 64, probe))
    start = time.perf_counter()
    small = octavo.quantize(model, row.bits, batches, progress=False, **row.options)
    seconds = time.perf_counter() - start
    x, labels = networks.cifar(data, "test", 0, images)
    right = networks.correct(small, x, labels, 100, probe)
    return Result(100 * right / images, octavo.report(small).bytes, seconds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="*", help="glob over the names of rows")
    parser.add_argument("--images", type=int, default=10000, help="of the test set")
    parser.add_argument("--calibration", type=int, help="images, instead of 1,024")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, octavo {octavo.isa()}, {arguments.images} test images")
    print(f"{'row':34} {'float':>6} {'now':>6} {'floor':>6} {'KiB':>8} {'seconds':>8}")
    for row in ROWS:
        if not fnmatch.fnmatchcase(row.name, arguments.rows):
            continue
        got = measure(row, folder(), arguments.images, arguments.calibration)
        print(
            f"{row.name:34} {FLOAT[row.network]:6.2f} {got.accuracy:6.2f} {row.floor:6.2f} "
            f"{got.bytes / 1024:8.1f} {got.seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
