"""`octavo demo`: the float network, its dynamic and its whole integer form, side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import octavo
from octavo.demo.digits import load_digits
from octavo.reporting.multiplies import count_multiplies
from octavo.reporting.report import align, resident_bytes

__all__ = ["Row", "measure", "run"]


@dataclass(frozen=True)
class Row:
    """One line of the demo's table.

    Attributes:
        accuracy: in percent.
        bytes: of parameters and buffers in memory.
        seconds_one: for one image alone.
        seconds_many: for one image in a batch of 64.
        integer_share: of all multiply-adds.
    """

    name: str
    accuracy: float
    bytes: int
    seconds_one: float
    seconds_many: float
    integer_share: float


def run(rounds: int = 50) -> str:
    """The demo's table as text. ``rounds``: timed calls of each model; the fastest counts."""
    return _text(measure(rounds))


def measure(rounds: int = 50) -> list[Row]:
    """The rows of the demo's table."""
    digits = load_digits()
    models: dict[str, nn.Module] = {
        "float": digits.model,
        "integer weights, dynamic": octavo.quantize(digits.model, 8, progress=False),
        "whole model in integers": octavo.quantize(
            digits.model, 8, data=digits.calibration, progress=False
        ),
    }
    timed = {count: _fastest(models, digits.images[:count], rounds) for count in (1, 64)}
    return [
        Row(
            name,
            _accuracy(model, digits.images, digits.labels),
            resident_bytes(model),
            timed[1][name],
            timed[64][name] / 64,
            count_multiplies(model, digits.images[:1]).integer_share,
        )
        for name, model in models.items()
    ]


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        right = int((model(images).argmax(1) == labels).sum())
    return 100 * right / len(labels)


def _fastest(models: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each model; they take turns, so that load hits all alike."""
    best = dict.fromkeys(models, float("inf"))
    with torch.inference_mode():
        for _ in range(rounds):
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _text(rows: list[Row]) -> str:
    header = ("", "accuracy", "memory", "1 image", "of 64", "multiply-adds in integers")
    cells = [
        (
            row.name,
            f"{row.accuracy:.2f} %",
            f"{row.bytes / 1024:.0f} KiB",
            f"{1e6 * row.seconds_one:.0f} us",
            f"{1e6 * row.seconds_many:.1f} us",
            f"{100 * row.integer_share:.1f} %",
        )
        for row in rows
    ]
    return "\n".join(
        [
            "600 handwritten digits that the network has never seen; "
            f"instruction set {octavo.isa()}, {torch.get_num_threads()} threads",
            "time per image: alone, and in batches of 64; the fastest of several calls",
            "",
            align([header, *cells], right={1, 2, 3, 4, 5}),
        ]
    )
