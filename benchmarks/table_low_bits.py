"""Prints what few bits cost: accuracy, resident bytes and seconds of networks with real weights.

    python benchmarks/table_low_bits.py                     # every row, full test sets
    python benchmarks/table_low_bits.py --rows "resnet20 W4*" --images 1000

Columns "float" and "now": top-1 accuracy in percent; for stories260k the loss in nats per token on
the first 400 windows; for MiniLM the mean cosine of 50 sentence embeddings to the float ones; for
g2p (GRU encoder and decoder) word accuracy in percent. "asked": the bound that "now" has to meet, an
upper one for stories260k and a lower one for the others.
Needs the folder with weights and images (OCTAVO_DATA, or shared/data beside the repository).
Calibration reads training images only; no test image takes part in any choice.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octavo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
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
    """score: top-1 in percent, or nats a token. bytes: resident, of the quantized model."""

    score: float
    bytes: int
    seconds: float


FLOAT = {
    "resnet20": 91.73,
    "mobilenet probe": 83.35,
    "stories260k": 1.4986,
    "minilm": 1.0,
    "g2p": 63.88,
}
WEIGHT_ONLY = {"activations": "float", "group_size": 32}
DYNAMIC = {"activations": "dynamic", "group_size": 64}
AFFINE = {"symmetric": False}
BEST = {"effort": "best"}

ROWS = (
    Row("resnet20 W8", "resnet20", 8, 91.6),
    Row("resnet20 W4 balanced", "resnet20", 4, 91.5),
    Row("resnet20 W3 balanced", "resnet20", 3, 91.3),
    Row("resnet20 W2 balanced", "resnet20", 2, 88.0),
    Row("resnet20 W4 without data", "resnet20", 4, 90.6, 0),
    Row("resnet20 W4 best", "resnet20", 4, 91.7, 1024, BEST),
    Row("resnet20 W3 best", "resnet20", 3, 91.3, 1024, BEST),
    Row("resnet20 W2 best", "resnet20", 2, 88.0, 1024, BEST),
    Row("resnet20 W4A4 best", "resnet20", (4, 4), 90.7, 1024, BEST),
    Row("resnet20 W4A4 balanced", "resnet20", (4, 4), 90.6),
    Row("resnet20 W3A3 balanced", "resnet20", (3, 3), 87.5),
    # No outside figures. Rounded plainly: 1.0 and 18.9 points fewer on 1,000 training images.
    Row("mobilenet probe W8 without data", "mobilenet probe", 8, 83.1, 0),
    Row("mobilenet probe W6 without data", "mobilenet probe", 6, 75.5, 0),
    Row("mobilenet probe W4 balanced", "mobilenet probe", 4, 80.5),
    Row("mobilenet probe W4 best", "mobilenet probe", 4, 81.5, 1024, BEST),
    Row("mobilenet probe average 4 fast", "mobilenet probe", 4.0, 76.0, 1024, {"effort": "fast"}),
    Row("mobilenet probe W4 fast", "mobilenet probe", 4, 10.0, 1024, {"effort": "fast"}),
    Row("minilm W8 dynamic", "minilm", 8, 0.995, 0),
    Row("minilm W4 g64 affine dynamic", "minilm", 4, 0.97, 256, DYNAMIC | AFFINE),
    # No outside figures: what they are today, less what 10 of 371 words differ by.
    Row("g2p W8 dynamic", "g2p", 8, 61.2, 0),
    Row("g2p W4 nf without data", "g2p", 4, 60.0, 0, {"grid": "nf"}),
    Row("g2p W4 dynamic", "g2p", 4, 58.0, 256, {"activations": "dynamic"}),
    Row("g2p W3 dynamic best", "g2p", 3, 50.0, 256, {"activations": "dynamic"} | BEST),
    Row("stories260k W8 g32", "stories260k", 8, 1.500, 0, WEIGHT_ONLY),
    Row("stories260k W4 g32", "stories260k", 4, 1.565, 128, WEIGHT_ONLY),
    Row("stories260k W3 g32", "stories260k", 3, 1.85, 128, WEIGHT_ONLY),
    # No outside figures: what symmetric weights reach.
    Row("stories260k W4 g32 affine", "stories260k", 4, 1.55, 128, WEIGHT_ONLY | AFFINE),
    Row("stories260k W3 g32 affine", "stories260k", 3, 1.784, 128, WEIGHT_ONLY | AFFINE),
    *(
        Row(
            f"stories260k W{bits} g32 {grid} without data",
            "stories260k",
            bits,
            floor,
            0,
            WEIGHT_ONLY | {"grid": grid},
        )
        # No outside figure: what linear costs today, and less than that for the others.
        for bits, floors in ((4, (1.64, 1.62, 1.62)), (3, (2.27, 2.16, 2.16)))
        for grid, floor in zip(("linear", "nf", "kmeans"), floors, strict=True)
    ),
)


def measure(row: Row, data: Path, images: int = 10000, calibration: int | None = None) -> Result:
    """Quantizes and counts.

    images: of the test set (windows of text: 400 of 10,000). calibration: instead of the row's own.
    """
    count = min(row.data, calibration or row.data)
    if row.network == "stories260k":
        model = networks.stories(data)
        batches = [networks.tokens(data, "calib", count)[:, :-1]] if count else None
        small, seconds = quantized(model, row, batches)
        # Packed look-ups and products are what the levels say (tests/python/nn/test_low_bits.py).
        windows = networks.tokens(data, "eval", images // 25)
        score = networks.nll(octavo.dequantize(small), windows)
        return Result(score, octavo.report(small).bytes, seconds)
    if row.network == "minilm":
        return measure_minilm(row, count)
    if row.network == "g2p":
        speller, words = networks.speller()
        spoken = networks.own_speech(speller, count, words) if count else None
        small, seconds = quantized(speller, row, spoken)
        score = 100 * networks.said_right(small, words) / len(words)
        return Result(score, octavo.report(small).bytes, seconds)
    probe = row.network != "resnet20"
    model = networks.mobilenet_probe(data) if probe else networks.resnet20(data)
    batches = None
    if count:
        x, _ = networks.cifar(data, "train", 0, count)
        batches = list(networks.batches(x, 64, probe))
    small, seconds = quantized(model, row, batches)
    x, labels = networks.cifar(data, "test", 0, images)
    right = networks.correct(small, x, labels, 100, probe)
    return Result(100 * right / images, octavo.report(small).bytes, seconds)


def measure_minilm(row: Row, count: int) -> Result:
    """Mean cosine of embeddings; ImportError where the encoder is not installed."""
    model, tokenizer = networks.minilm()
    text = networks.prose(count)
    batches = [
        dict(tokenizer(text[start : start + 16], padding=True, return_tensors="pt"))
        for start in range(0, count, 16)
    ]
    small, seconds = quantized(model, row, batches or None)
    tokens = tokenizer(networks.SENTENCES, padding=True, return_tensors="pt")
    cosine = (networks.embed(small, tokens) * networks.embed(model, tokens)).sum(1)
    print(f"{row.name}: smallest cosine {float(cosine.min()):.4f}")
    return Result(float(cosine.mean()), octavo.report(small).bytes, seconds)


def quantized(model: nn.Module, row: Row, batches: Any) -> tuple[nn.Module, float]:
    """The quantized model and how long that took."""
    start = time.perf_counter()
    small = octavo.quantize(model, row.bits, batches, progress=False, **row.options)
    return small, time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="*", help="glob over the names of rows")
    parser.add_argument("--images", type=int, default=10000, help="of the test set")
    parser.add_argument("--calibration", type=int, help="images, instead of 1,024")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, octavo {octavo.isa()}, {arguments.images} test images")
    print(f"{'row':38} {'float':>8} {'now':>8} {'asked':>8} {'KiB':>8} {'seconds':>8}")
    for row in ROWS:
        if not fnmatch.fnmatchcase(row.name, arguments.rows):
            continue
        try:
            got = measure(row, networks.data_folder(), arguments.images, arguments.calibration)
        except ImportError as error:
            print(f"{row.name:38} left out: {error}")
            continue
        print(
            f"{row.name:38} {FLOAT[row.network]:8.4f} {got.score:8.4f} {row.floor:8.4f} "
            f"{got.bytes / 1024:8.1f} {got.seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
