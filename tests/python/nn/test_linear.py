"""QLinear: what it computes, dynamically and statically, and transformers' Conv1D."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from octavo import ops
from small_models import RANGE, error_of, quantized


@pytest.mark.parametrize("bits, budget", [(8, 1e-4), (6, 1e-3), (4, 2e-2)])
def test_is_close_to_float(bits: int, budget: float) -> None:
    module, x = nn.Linear(256, 100), torch.randn(5, 3, 256)
    assert error_of(quantized(module, None, bits)(x), module(x)) < budget
    assert error_of(quantized(module, RANGE, bits)(x), module(x)) < 2 * budget


def test_static_is_exact_integers(isa: str) -> None:
    module, x = nn.Linear(129, 33), torch.randn(7, 129)
    layer = quantized(module, RANGE)
    codes = ops.quantize(x, RANGE.scale, RANGE.zero_point).double() - RANGE.zero_point
    sums = codes @ layer.codes().double().t()
    step = (torch.tensor(RANGE.scale).double() * layer.weight_scale.double()).float().double()
    expected = (sums * step + layer.bias.double()).float()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("params", [None, RANGE], ids=["dynamic", "static"])
def test_layouts_ranks_and_empties(params: object) -> None:
    layer = quantized(nn.Linear(24, 8), params)  # type: ignore[arg-type]
    x = torch.randn(6, 10, 24)
    y = layer(x)
    wide = torch.randn(6, 10, 49)
    wide[..., 1::2] = x
    assert torch.equal(layer(wide[..., 1::2]), y)
    assert torch.equal(layer(x.transpose(0, 1)), y.transpose(0, 1))
    assert torch.equal(layer(x[0, 0]), y[0, 0])
    assert torch.equal(layer(x.view(1, 2, 3, 10, 24)), y.view(1, 2, 3, 10, 8))
    image = x.view(2, 3, 10, 24).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(image), y.view(2, 3, 10, 8))
    assert layer(torch.empty(0, 24)).shape == (0, 8)
    assert layer(torch.empty(2, 0, 24)).shape == (2, 0, 8)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (9, 1), (65_800, 2)], ids=str)
def test_extreme_sizes(sizes: tuple[int, int]) -> None:
    module, x = nn.Linear(*sizes), torch.randn(2, sizes[0])
    assert error_of(quantized(module)(x), module(x)) < 2e-4


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)], ids=str)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_features(sizes: tuple[int, int]) -> None:
    module, x = nn.Linear(*sizes), torch.randn(2, sizes[0])
    assert torch.allclose(quantized(module)(x), module(x))


def test_transformers_conv1d_has_its_weight_transposed() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    module, x = pytorch_utils.Conv1D(12, 20), torch.randn(3, 20)
    layer = quantized(module)
    assert (layer.in_features, layer.out_features, layer.nf) == (20, 12, 12)
    assert layer.weight.shape == module.weight.shape == (20, 12)
    assert error_of(layer(x), module(x)) < 1e-4
    assert type(layer.to_float()) is pytorch_utils.Conv1D
    assert error_of(layer.to_float()(x), module(x)) < 1e-4
