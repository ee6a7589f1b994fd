"""A module of one's own in integers: one class and one row.

python examples/add_a_module.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.nn import registry
from octavo.nn.linear import QLinear


class StandardizedLinear(nn.Module):
    """x V^T + b, V the weight with mean 0 and deviation 1 / sqrt(K) in each row: unknown to octavo.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization" (2019).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(0.3 + torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, standardized(self.weight), self.bias)


def standardized(weight: Tensor) -> Tensor:
    centered = weight - weight.mean(1, keepdim=True)
    return F.normalize(centered, dim=1)


@registry.register(registry.qualified_name(StandardizedLinear))
class QStandardizedLinear(QLinear):
    """Stands for StandardizedLinear: its products, sizes, files and messages are QLinear's."""

    @staticmethod
    def canonical_weight(module: nn.Module) -> Tensor:
        """The weight that the products see: what is rounded, once and for all."""
        return standardized(QLinear.canonical_weight(module))


def network() -> nn.Module:
    return nn.Sequential(
        StandardizedLinear(64, 128),
        nn.ReLU(),
        StandardizedLinear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).eval()


def decibels(wanted: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (got - wanted).square().sum()))


def main() -> int:
    torch.manual_seed(0)
    model = network()
    x = torch.randn(256, 64)
    with torch.no_grad():
        wanted = model(x)

    dynamic = octavo.quantize(model, 8, progress=False)
    static = octavo.quantize(model, 8, data=list(torch.randn(256, 64).split(64)), progress=False)
    packed = octavo.quantize(
        model, 4, data=list(torch.randn(1024, 64).split(64)), activations="dynamic", progress=False
    )
    for name, small in (("8 bits", dynamic), ("8 bits, data", static), ("4 bits, data", packed)):
        print(f"{name:12}  {type(small[0]).__name__}, {decibels(wanted, small(x)):.1f} dB")
    print(octavo.report(packed))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        octavo.save(packed, file)
        same = torch.equal(octavo.load(file, network())(x), packed(x))
    print("\nloaded model gives the same bits:", same)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
