"""Quantizes torchvision networks with and without data and prints what became of each.

    python benchmarks/table_torchvision.py                         # all 14, 224 px
    python benchmarks/table_torchvision.py --models resnet18 vit_b_16 --size 96

Weights are random but seeded, BatchNorm has real statistics. Columns (layers are convolutions and linear ones): share of the multiply-adds that octavo's
operators did in integers, number of regions, signal-to-quantization-noise of the logits (dB), bytes
against float, seconds to quantize, and whether a saved and loaded model gives the same bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import octavo
from octavo import _C

sys.path.insert(0, str(Path(__file__).parent))
from engines import float_model, images  # the benchmark's models and images

# The first eleven are convolutional: one region each, and at least 99 % of the multiply-adds in integers.
CONVOLUTIONAL = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "regnet_y_400mf",
)
MODELS = (*CONVOLUTIONAL, "convnext_tiny", "vit_b_16", "swin_t")


@dataclass
class Result:
    """One network in one mode."""

    model: str
    mode: str
    integer_share: float
    regions: int
    layers: int
    integer_layers: int
    sqnr: float
    shrink: float
    seconds: float
    same_bits: bool


def build(name: str) -> nn.Module:
    """An empty model of the same architecture, as a user has when loading."""
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **kwargs).eval()


def decibels(expected: torch.Tensor, actual: torch.Tensor) -> float:
    noise = float((expected.double() - actual.double()).square().sum())
    return (
        float("inf")
        if noise == 0
        else float(10 * torch.log10(expected.double().square().sum() / noise))
    )


@torch.no_grad()
def measure(name: str, model: nn.Module, with_data: bool, size: int, folder: Path) -> Result:
    """Quantizes, runs, saves, loads."""
    data: Any = list(images(32, size, 7).split(8)) if with_data else None
    x = images(2, size, 11)
    # The fused attention of eval mode is one operator that torch's counter does not know.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter:
        expected = model(x)
    torch.backends.mha.set_fastpath_enabled(fast_path)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = octavo.quantize(model, 8, data=data, progress=False)
    seconds = time.perf_counter() - start
    _C.reset_integer_macs()
    actual = small(x)
    share = 2 * _C.integer_macs() / counter.get_total_flops()
    report = octavo.report(small)
    file = folder / f"{name}.safetensors"
    octavo.save(small, file)
    again = octavo.load(file, build(name))(x)
    products = (nn.Linear, nn.Conv1d, nn.Conv2d)
    names = {n for n, m in model.named_modules() if isinstance(m, products)}
    layers = [row.layer for row in report.rows if row.layer.name in names]
    return Result(
        name,
        "static" if with_data else "dynamic",
        share,
        len({layer.region for layer in layers if layer.region}),
        len(layers),
        sum(1 for layer in layers if layer.bits),
        decibels(expected, actual),
        report.float_bytes / report.bytes,
        seconds,
        torch.equal(actual, again),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    print(f"octavo ISA: {octavo.isa()}, torch {torch.__version__}, {args.size} px")
    print(
        f"{'model':20}{'mode':9}{'integer MACs':>13}{'regions':>9}{'layers':>9}{'SQNR dB':>9}"
        f"{'smaller':>9}{'seconds':>9}  save and load"
    )
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model = float_model(name)
            for with_data in (False, True):
                r = measure(name, model, with_data, args.size, Path(folder))
                failed |= not r.same_bits
                print(
                    f"{r.model:20}{r.mode:9}{100 * r.integer_share:12.2f}%{r.regions:9d}"
                    f"{f'{r.integer_layers}/{r.layers}':>9}{r.sqnr:9.1f}{r.shrink:8.2f}x{r.seconds:9.1f}  "
                    f"{'same bits' if r.same_bits else 'DIFFERENT BITS'}",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
