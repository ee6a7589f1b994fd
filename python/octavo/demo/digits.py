"""The demo's network and its data."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Digits", "DigitsNet", "load_digits"]


class Block(nn.Module):
    """Two convolutions around a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        out: Tensor = self.relu(y)
        return out


class DigitsNet(nn.Module):
    """A residual network for 8x8 grey images [N, 1, 8, 8] in 0..1; logits of the ten digits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.block1 = Block(width)
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.block2 = Block(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10]."""
        x = self.block2(self.down(self.block1(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Digits:
    """The trained network, images to calibrate with, and labelled images it has never seen.

    Attributes:
        calibration: float32 [128, 1, 8, 8].
        images: float32 [600, 1, 8, 8].
        labels: int64 [600].
    """

    model: DigitsNet
    calibration: Tensor
    images: Tensor
    labels: Tensor


def load_digits() -> Digits:
    """The demo's data, read from the package."""
    file = resources.files("octavo.demo").joinpath("digits.npz")
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        state = {
            name.removeprefix("model."): torch.from_numpy(arrays[name].copy())
            for name in arrays.files
            if name.startswith("model.")
        }
        calibration, images = (_images(arrays[name]) for name in ("calibration", "images"))
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    model = DigitsNet()
    model.load_state_dict(state)
    return Digits(model.eval(), calibration, images, labels)


def _images(pixels: np.ndarray) -> Tensor:
    """uint8 [N, 8, 8] in 0..16 to float32 [N, 1, 8, 8] in 0..1."""
    return torch.from_numpy(pixels.astype(np.float32) / 16)[:, None]
