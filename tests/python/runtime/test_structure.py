"""What a static model fixes: a change of it makes the class's own forward run over the integer layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.runtime.captured_forward import captured_forward


class Config:
    def __init__(self) -> None:
        self.negative = False


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())
        self.gain = nn.Parameter(torch.ones(8))
        self.scale, self.raw, self.steps = 1.0, False, [0, 1]
        self.config = Config()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) * self.gain
        for step in self.steps:
            x = x + step
        x = -x if self.config.negative else x
        return x if self.raw else x * self.scale


class Other(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 100


def _set(name: str, value: object) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model, name, value)


def _fill(model: nn.Module) -> None:
    with torch.no_grad():
        model.gain.fill_(0.5)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a number": _set("scale", 3.0),
    "a flag": _set("raw", True),
    "a list's content": lambda m: m.steps.append(5),
    "a config's attribute": lambda m: setattr(m.config, "negative", True),
    "a Parameter in a table, written": _fill,
    "a Parameter in a table, replaced": lambda m: setattr(m, "gain", nn.Parameter(torch.zeros(8))),
    "the class": lambda m: setattr(m, "__class__", Other),
    "a child more": lambda m: m.body.append(nn.Softmax(-1)),
    "a child less": lambda m: m.body.__delitem__(3),
    "another child": lambda m: m.body.__setitem__(3, nn.Sigmoid()),
}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(64, 16)
    small = octavo.quantize(model, 8, data=[x], progress=False)
    forward = captured_forward(small)
    assert forward is not None and len(forward.items) >= 1
    return model, small, x


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_changes_are_followed(pair: tuple[nn.Module, nn.Module, Tensor], name: str) -> None:
    model, small, x = (copy.deepcopy(part) for part in pair)
    small(x)
    CHANGES[name](model)
    CHANGES[name](small)
    for again in (small, copy.deepcopy(small)):
        wanted, got = model(x), again(x)
        assert float((got - wanted).norm()) <= 0.03 * float(wanted.norm()) + 1e-6


def test_copies_keep_running_their_regions(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, small, x = pair
    y = small(x)
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(again(x), y)
        forward = captured_forward(again)
        assert forward is not None and forward._bound is not None and forward._bound.structure.fits


@torch.no_grad()
def test_files_keep_what_was_read(
    pair: tuple[nn.Module, nn.Module, Tensor], tmp_path: object
) -> None:
    _, small, x = pair
    octavo.save(small, f"{tmp_path}/small.safetensors")
    assert torch.equal(octavo.load(f"{tmp_path}/small.safetensors", Net())(x), small(x))
    other = Net()
    other.scale = 3.0  # The code that the file is loaded into computes something else.
    loaded = octavo.load(f"{tmp_path}/small.safetensors", other)
    assert float((loaded(x) - 3 * small(x)).norm()) <= 0.03 * float(3 * small(x).norm())
