"""Builds quantized layers and captured models without the public pipeline's choices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.capture import capture
from octavo.lowering.rewrite import rewrite
from octavo.nn import QLayer, canonical_weight, quantized_class
from octavo.nn.surgery import copy_model
from octavo.numerics.scheme import QParams, Scheme
from octavo.planning.plan import plan
from octavo.prepare.calibrate import calibrate
from octavo.prepare.fold import fold
from octavo.rounding import nearest

RANGE = QParams(float(torch.tensor(0.03)), 128)


def quantized(
    module: nn.Module, params: QParams | None = None, bits: int = 8, path: str = "net.0"
) -> Any:
    """``module`` as its quantized class, rounded to nearest."""
    cls, reason = quantized_class(module)
    assert cls is not None, reason
    integers = nearest(canonical_weight(module), module.bias, Scheme(bits))  # type: ignore[arg-type]
    return cls.from_float(
        module, integers.codes, integers.scale, integers.bias, bits, input_params=params, path=path
    )


def captured(model: nn.Module, data: list[Tensor] | None, inplace: bool = False) -> nn.Module:
    """``model`` rewritten: whole stretches in integers with data, layer by layer without."""
    example = None if data is None else ((data[0],), {})
    folded = fold(copy_model(model).eval(), example).model
    planned = plan(capture(folded, example), Scheme(8), "dynamic" if data is None else "static")
    params = {} if data is None else calibrate(folded, planned, data, progress=False).qparams
    integers = {}
    for site in planned.sites:
        if site.scheme is not None:
            layer = folded.get_submodule(site.name)
            integers[site.name] = nearest(
                canonical_weight(layer), getattr(layer, "bias", None), site.scheme
            )  # type: ignore[arg-type]
    return rewrite(folded, planned, params, integers, inplace)


class Block(nn.Module):
    """A residual block, its addition in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Net(nn.Module):
    """A small residual network that becomes one region."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.flatten(self.avg(self.layer1(self.pool(self.stem(x)))), 1)))


def trained(model: nn.Module, size: tuple[int, ...] = (4, 3, 32, 32)) -> nn.Module:
    """``model`` in eval mode with statistics of real batches in its normalisations."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(size))
    return model.eval()


def error_of(y: Tensor, expected: Tensor) -> float:
    """Power of the difference over power of the signal."""
    return float((y - expected).detach().pow(2).sum() / expected.detach().pow(2).sum())


def layers(model: nn.Module) -> dict[str, QLayer]:
    """The quantized layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QLayer)}
