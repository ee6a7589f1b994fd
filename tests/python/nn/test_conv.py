"""QConv1d and QConv2d: every geometry, dynamically and statically, against exact integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo import ops
from small_models import RANGE, error_of, quantized

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

CONVOLUTIONS: dict[str, Any] = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2)),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2),
    "same": lambda: nn.Conv2d(4, 6, (4, 2), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4, padding=1),
    "depthwise": lambda: nn.Conv2d(8, 8, 5, groups=8, padding=2, stride=2),
    "depthwise, two each": lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "pointwise": lambda: nn.Conv2d(16, 24, 1, bias=False),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "1-D": lambda: nn.Conv1d(4, 6, 5, stride=2, padding=3),
    "1-D grouped": lambda: nn.Conv1d(6, 6, 3, groups=3, dilation=2),
    "1-D reflect": lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"),
    "1-D same": lambda: nn.Conv1d(4, 6, 4, padding="same"),
}


@pytest.fixture(params=CONVOLUTIONS)
def case(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    module = CONVOLUTIONS[request.param]()
    sizes = (13, 11)[: len(module.kernel_size)]
    return module, torch.randn(3, module.in_channels, *sizes)


def integer_convolution(layer: Any, codes: Tensor, zero_point: Tensor | int) -> Tensor:
    """Exact sums in float64: padding stands for the real zero."""
    distance = codes.double() - zero_point
    twin = layer.to_float()
    with torch.no_grad():
        module = type(twin).__new__(type(twin))
        module.__dict__.update(twin.double().__dict__)
        module._parameters = {"weight": nn.Parameter(layer.codes().double()), "bias": None}
        return module(distance)


def test_static_is_exact_integers(case: Any, isa: str) -> None:
    module, x = case
    layer = quantized(module, RANGE)
    sums = integer_convolution(
        layer, ops.quantize(x, RANGE.scale, RANGE.zero_point), RANGE.zero_point
    )
    shape = (-1,) + (1,) * len(layer.kernel_size)
    step = (
        (torch.tensor(RANGE.scale).double() * layer.weight_scale.double())
        .float()
        .double()
        .view(shape)
    )
    bias = 0.0 if layer.bias is None else layer.bias.double().view(shape)
    assert torch.equal(layer(x), (sums * step + bias).float())


def test_dynamic_has_one_range_a_sample(case: Any, isa: str) -> None:
    module, x = case
    x = x * torch.tensor([0.01, 1.0, 100.0]).view(-1, *[1] * (x.dim() - 1))
    layer = quantized(module)
    y = layer(x)
    assert y.shape == module(x).shape
    for sample in range(3):
        assert torch.equal(layer(x[sample : sample + 1])[0], y[sample])
        assert torch.equal(layer(x[sample]), y[sample]), "unbatched"
        assert error_of(y[sample], module(x)[sample]) < 3e-3


@pytest.mark.parametrize("params", [None, RANGE], ids=["dynamic", "static"])
def test_memory_layouts(case: Any, params: Any) -> None:
    module, x = case
    layer = quantized(module, params)
    y = layer(x)
    assert y.is_contiguous()
    wide = torch.randn(*x.shape[:-1], 2 * x.shape[-1] + 1)
    wide[..., 1::2] = x
    for same in (wide[..., 1::2], x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(layer(same), y)
    assert torch.equal(layer(x[:1].expand_as(x)), y[:1].expand_as(y))
    if x.dim() == 4:
        last = layer(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(last, y) and last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("params", [None, RANGE], ids=["dynamic", "static"])
def test_empty_batches(case: Any, params: Any) -> None:
    module, x = case
    if module.padding_mode != "zeros":
        pytest.skip("torch's own pad refuses empty batches in some modes")
    assert quantized(module, params)(x[:0]).shape == module(x[:0]).shape


def test_threads_do_not_matter(case: Any) -> None:
    module, x = case
    layer, before = quantized(module, RANGE), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = layer(x)
        torch.set_num_threads(2)
        assert torch.equal(layer(x), one)
    finally:
        torch.set_num_threads(before)


def test_functional_padding_matches_float() -> None:
    module, x = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 8, 8)
    twin = nn.Conv2d(4, 6, 3)
    twin.load_state_dict(module.state_dict())
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    assert torch.equal(quantized(module, RANGE)(x), quantized(twin, RANGE)(padded))
