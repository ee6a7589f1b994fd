"""Networks with real weights and their data, written from the layouts in the data folder's README.

Used by the tests here and by examples/; imports nothing of octavo.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut subsamples and pads channels with zeros."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pad = 0 if inputs == planes else planes // 4

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        out += x
        return F.relu(out)


class ResNet20(nn.Module):
    """CIFAR ResNet-20 (He et al. 2015, section 4.2, option A). [N, 3, 32, 32] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(
            BasicBlock(16, 32, 2), *[BasicBlock(32, 32, 1) for _ in range(2)]
        )
        self.layer3 = nn.Sequential(
            BasicBlock(32, 64, 2), *[BasicBlock(64, 64, 1) for _ in range(2)]
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        x = x.view(x.size(0), -1)
        return self.linear(x)


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.conv0 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(hidden)
        self.conv1 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn0(self.conv0(x)))
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return x + out if self.residual else out


class MobileNetV2Probe(nn.Module):
    """MobileNetV2-1.0 (MXNet variant, ReLU) with a 10-class head. [N, 3, 96, 96] to [N, 10]."""

    channels = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
    strides = (1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(32)
        blocks, inputs = [], 32
        for i, (outputs, stride) in enumerate(zip(self.channels, self.strides, strict=True)):
            blocks.append(InvertedResidual(inputs, outputs, stride, 6 if i else 1))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv1 = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1280)
        self.fc = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        x = self.blocks(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(x.mean((2, 3)))


def _load(model: nn.Module, path: Path) -> nn.Module:
    weights = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def resnet20(data: Path) -> nn.Module:
    """Trained ResNet-20: 91.73 % on the 10,000 test images."""
    return _load(ResNet20(), data / "resnet20_cifar10.npz")


def mobilenet_probe(data: Path) -> nn.Module:
    """MobileNetV2 with a fitted head: 83.35 % on the 10,000 test images at 96 px."""
    return _load(MobileNetV2Probe(), data / "mobilenet_v2_features_cifar10_probe.npz")


def _decode(path: Path) -> np.ndarray:
    from PIL import Image

    array = np.asarray(Image.open(path).convert("RGB"))
    return array.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


_decoded: dict[Path, np.ndarray] = {}


def cifar(data: Path, split: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Normalised images float32 [N, 3, 32, 32] and labels int64 [N]; start and stop lie in one file of 10,000."""
    part = start // 10000
    name = "cifar10_test.webp" if split == "test" else f"cifar10_train_{part + 1}.webp"
    path = data / name
    if path not in _decoded:
        _decoded[path] = _decode(path)
    raw = _decoded[path][start - 10000 * part : stop - 10000 * part]
    x = torch.from_numpy(raw.copy()).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = np.load(data / "cifar10_labels.npz")[split][start:stop]
    return x.contiguous(), torch.from_numpy(labels.astype(np.int64))


def resize96(x: Tensor) -> Tensor:
    """32 px to 96 px, as the probe was fitted."""
    return F.interpolate(x, size=(96, 96), mode="bilinear", align_corners=False)


def batches(x: Tensor, size: int, probe: bool = False) -> Iterator[Tensor]:
    """Splits x into batches; resized one by one for the probe, so that memory stays small."""
    for part in x.split(size):
        yield resize96(part) if probe else part


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, labels: Tensor, size: int, probe: bool = False) -> int:
    """How many images the model classifies rightly."""
    right = 0
    for part, truth in zip(batches(x, size, probe), labels.split(size), strict=True):
        right += int((model(part).argmax(1) == truth).sum())
    return right
