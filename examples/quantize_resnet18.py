"""Quantizes torchvision's ResNet-18 as a whole: what it costs, what it gains, how it is kept.

python examples/quantize_resnet18.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

import octavo

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from engines import (
    float_model,
    images,
)  # a seeded model with real BatchNorm statistics; smooth images


def milliseconds(model: torch.nn.Module, x: torch.Tensor) -> float:
    times = []
    with torch.no_grad():
        for _ in range(12):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> int:
    model = float_model("resnet18")  # or torchvision.models.resnet18(weights="DEFAULT").eval()
    batches = images(32, 224, 7).split(8)

    start = time.perf_counter()
    fast = octavo.quantize(model, 8, data=batches)
    print(f"quantized in {time.perf_counter() - start:.1f} s\n")
    print(octavo.report(fast, data=[images(4, 224, 11)], reference=model))

    x = images(1, 224, 11)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resnet18.safetensors"
        octavo.save(fast, file)
        again = octavo.load(file, torchvision.models.resnet18())
        with torch.no_grad():
            same = torch.equal(again(x), fast(x))
        print(
            f"\nfile: {file.stat().st_size / 2**20:.1f} MiB, loaded model gives the same bits: {same}"
        )
    before, after = milliseconds(model, x), milliseconds(fast, x)
    print(
        f"one image, {torch.get_num_threads()} threads: {before:.1f} ms float, {after:.1f} ms in integers"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
