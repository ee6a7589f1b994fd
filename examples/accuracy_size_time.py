"""Accuracy, memory, file and time of a network at many widths, as a table and a picture.

    python examples/accuracy_size_time.py                               # the demo's network, inside the package
    python examples/accuracy_size_time.py --network resnet20 --images 1000 --save front.png
    python examples/accuracy_size_time.py --grids linear nf apot --bits 4 3 2

ResNet-20 and the MobileNetV2 probe need the folder with weights and images (OCTAVO_DATA, or shared/data beside the
repository). Images to calibrate with are training images; the score is top-1 in percent on test images, so choose
no setting by it: take held-out training images for that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from octavo.demo import load_digits

ROOT = Path(__file__).resolve().parent.parent


def digits() -> tuple[nn.Module, Any, Tensor, Tensor]:
    """Model, batches to calibrate with, test images and labels."""
    found = load_digits()
    return found.model, found.calibration, found.images, found.labels


def cifar(network: str, images: int) -> tuple[nn.Module, Any, Tensor, Tensor]:
    """As `digits`, for the networks with given weights."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import networks

    folder = networks.data_folder()
    probe = network == "mobilenet"
    model = networks.mobilenet_probe(folder) if probe else networks.resnet20(folder)
    x, _ = networks.cifar(folder, "train", 0, 512)
    test, labels = networks.cifar(folder, "test", 0, images)
    if probe:
        test = networks.resize96(test)
    return model, list(networks.batches(x, 64, probe)), test, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("digits", "resnet20", "mobilenet"), default="digits")
    parser.add_argument("--bits", type=float, nargs="+", default=[8, 6, 5, 4, 3, 2])
    parser.add_argument("--grids", nargs="+", default=["linear"], choices=octavo.grids())
    parser.add_argument("--effort", default="balanced", choices=("fast", "balanced", "best"))
    parser.add_argument("--images", type=int, default=1000, help="of the test set")
    parser.add_argument("--batch", type=int, default=1, help="samples in the timed call")
    parser.add_argument(
        "--save", type=Path, help="a picture: .png, .svg or .pdf (needs matplotlib)"
    )
    args = parser.parse_args()
    digit = args.network == "digits"
    model, data, images, labels = digits() if digit else cifar(args.network, args.images)

    @torch.inference_mode()
    def accuracy(candidate: nn.Module) -> float:
        right = sum(
            int((candidate(x).argmax(1) == y).sum())
            for x, y in zip(images.split(100), labels.split(100), strict=True)
        )
        return 100 * right / len(labels)

    front = octavo.pareto_front(
        model,
        data,
        evaluate=accuracy,
        bits=[int(b) if b == int(b) else b for b in args.bits],  # 4.5 is an average to be spent.
        grids=args.grids,
        inputs=images[: args.batch],
        effort=args.effort,
    )
    print(f"{args.network}: top-1 in percent of {len(labels)} test images")
    print(front)
    if args.save:
        front.plot().savefig(args.save, dpi=150)
        print(f"saved {args.save}")


if __name__ == "__main__":
    main()
