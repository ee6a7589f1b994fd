"""Which classes are swapped and why others stay float."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.nn import QConv1d, QConv2d, QLinear, float_reasons, quantized_class


class Plain(nn.Linear):
    """A subclass that computes what its base computes."""


class Casting(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.float())


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):  # type: ignore[no-untyped-def]
        return super()._conv_forward(input, weight * 2, bias)


@pytest.mark.parametrize(
    "module, expected",
    [
        (nn.Linear(2, 3), QLinear),
        (Plain(2, 3), QLinear),
        (nn.Conv1d(2, 3, 1), QConv1d),
        (nn.Conv2d(2, 3, 1), QConv2d),
    ],
    ids=["Linear", "subclass", "Conv1d", "Conv2d"],
)
def test_rows(module: nn.Module, expected: type) -> None:
    assert quantized_class(module) == (expected, "")


@pytest.mark.parametrize(
    "module, reason",
    [
        (Casting(2, 3), "Casting has its own forward"),
        (OwnConvolution(2, 3, 1), "OwnConvolution has its own _conv_forward"),
        (nn.Conv3d(2, 3, 1), "Conv3d has no integer form"),
        (nn.LayerNorm(3), "LayerNorm has no integer form"),
        (nn.MultiheadAttention(4, 2).out_proj, "nn.MultiheadAttention reads its weight"),
    ],
    ids=["own forward", "own _conv_forward", "no row", "norm", "attention"],
)
def test_reasons(module: nn.Module, reason: str) -> None:
    cls, why = quantized_class(module)
    assert cls is None and why.startswith(reason)


def test_a_forward_on_the_instance_is_a_reason() -> None:
    layer = nn.Linear(2, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert quantized_class(layer) == (None, "its forward is replaced on the instance")


def test_children_whose_weights_are_read_stay_float() -> None:
    reasons = float_reasons(nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Linear(8, 8)))
    assert reasons["1"] == ""
    for name in ("0.linear1", "0.linear2"):
        assert reasons[name] == "TransformerEncoderLayer reads its weight instead of calling it"
    assert "reads its weight" in reasons["0.self_attn.out_proj"]
    assert reasons["0.norm1"] == "LayerNorm has no integer form"


def test_a_module_that_stands_twice_appears_once() -> None:
    shared = nn.Linear(3, 3)
    assert float_reasons(nn.Sequential(shared, nn.ReLU(), shared)) == {"0": ""}


def biased(kind: str) -> nn.Module:
    """Layers whose bias is no Parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(512, 5),
    ).eval()  # fmt: skip
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bias = layer.bias.detach() + 1
            del layer.bias
            if kind == "plain":
                layer.bias = bias
            else:
                layer.register_buffer("bias", bias, persistent=kind == "buffer")
    return model


@pytest.mark.parametrize("kind", ["plain", "buffer", "fleeting buffer"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bits": 4},
        {"bits": 4, "rounding": "hqq"},
        {"data": True},
        {"bits": 4, "data": True},
        {"bits": 4, "data": True, "rounding": "adaround"},
        {"bits": 4, "data": True, "effort": "best"},
    ],
    ids=lambda how: " ".join(map(str, how.values())) or "dynamic",
)
def test_a_bias_may_be_a_tensor(kind, how, tmp_path):
    x = torch.randn(16, 3, 12, 12)
    model = biased(kind)
    how = {**how, "data": [x]} if "data" in how else how
    with torch.no_grad():
        small, wanted = octavo.quantize(model, progress=False, **how), model(x)
        assert float((small(x) - wanted).norm() / wanted.norm()) < 0.1
        octavo.save(small, tmp_path / "small.safetensors")
        loaded = octavo.load(tmp_path / "small.safetensors", biased(kind))
        assert torch.equal(loaded(x), small(x))
        floats = octavo.dequantize(small)(x)
        assert float((floats - wanted).norm() / wanted.norm()) < 0.1
    assert {"0.bias", "3.bias", "5.bias"} <= small.state_dict().keys()


@pytest.mark.parametrize("kind", ["plain", "buffer", "fleeting buffer"])
@pytest.mark.parametrize("data", [False, True], ids=["dynamic", "static"])
def test_a_trainee_takes_a_bias_that_is_a_tensor(kind, data):
    x, model = torch.randn(16, 3, 12, 12), biased(kind)
    how = {"data": [x]} if data else {}
    trainee = octavo.quantize(model, 8, qat=True, progress=False, **how)
    final = octavo.freeze(trainee, progress=False)
    with torch.no_grad():
        wanted = model(x)
        for made in (trainee, final):
            assert float((made(x) - wanted).norm() / wanted.norm()) < 0.02


def test_a_bias_that_is_a_tensor_must_be_finite():
    model = biased("plain")
    model[3].bias[2] = float("nan")
    with pytest.raises(ValueError, match=r"parameter '3.bias' must be finite"):
        octavo.quantize(model, progress=False)
