"""Which classes are swapped and why others stay float."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
