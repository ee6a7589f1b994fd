"""Forwards by torch.export: sizes, writes, shared tensors, results that are objects, layers as steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.graph.capture import Capture, capture
from octavo.graph.flow import Flow, bound, from_data, run, to_data


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def captured(model: nn.Module, *args: Tensor) -> Capture:
    return capture(model.eval(), (args, {}))


def flow_of(model: nn.Module, *args: Tensor) -> Flow:
    (flow,) = captured(model, *args).flows
    assert flow.path == "" and from_data(to_data(flow)) == flow
    return flow


def test_sizes_may_differ_where_they_are_free() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flow = flow_of(model, torch.randn(2, 3, 8, 9))
    for shape in ((1, 3, 8, 9), (5, 3, 20, 11)):
        x = torch.randn(shape)
        assert torch.equal(run(flow, model, x), model(x))
    assert bound(flow, (torch.randn(2, 4, 8, 9),)) is None, "channels may not"
    assert bound(flow, (torch.randn(2, 3, 8),)) is None


def test_sizes_inside_of_arguments() -> None:
    function = Function(lambda x: F.pad(x.view(x.shape[0], -1, 2), (0, x.shape[1] % 3)))
    flow = flow_of(function, torch.randn(2, 8))
    x = torch.randn(7, 8)
    assert torch.equal(run(flow, function, x), function(x))


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "of its own value": lambda x: (x + 1).mul_(2).clamp_(max=1),
    "into a slice": lambda x: _written(x * 2, lambda y: y[:, :2].clamp_(max=0.1)),
    "into a view": lambda x: _written(x * 2, lambda y: y.view(-1, 2).add_(1)),
    "by assignment": lambda x: _written(x * 2, lambda y: y.__setitem__((slice(None), 1), 3.0)),
    "into what views see": lambda x: _seen(x * 2),
}


def _written(y: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    write(y)
    return y + 1


def _seen(y: Tensor) -> Tensor:
    part = y[:, :3]
    y.relu_()
    return part + 1


@pytest.mark.parametrize("name", IN_PLACE)
def test_writes_in_place_are_followed(name: str) -> None:
    model = Function(IN_PLACE[name])
    flow = flow_of(model, torch.randn(2, 6))
    x = 10 * torch.randn(3, 6)
    assert torch.equal(run(flow, model, x.clone()), model(x.clone()))


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return y - self.mean


def test_writes_into_buffers_are_followed() -> None:
    model, twin = State(), State()
    twin.load_state_dict(model.state_dict())
    flow = flow_of(model, torch.randn(2, 6))
    assert [write[:2] for write in flow.writes] == [("buffer", "mean")]
    assert not model.mean.any(), "capture leaves the state alone"
    for _ in range(3):
        x = torch.randn(4, 6)
        assert torch.equal(run(flow, model, x), twin(x)) and torch.equal(model.mean, twin.mean)


def test_an_argument_that_is_written_into() -> None:
    model = Function(lambda x: x.add_(1) * 2)
    flow = flow_of(model, torch.randn(2, 6))
    x, y = torch.ones(3, 6), torch.ones(3, 6)
    assert torch.equal(run(flow, model, x), model(y)) and torch.equal(x, y)


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + 1 if a is b else a - b


def test_arguments_that_are_one_tensor() -> None:
    x = torch.randn(2, 3)
    flow = flow_of(Two(), x, x)
    assert bound(flow, (x, x)) is not None and bound(flow, (x, x.clone())) is None


class Pair(NamedTuple):
    a: Tensor
    n: int


@dataclass
class Both:
    a: Tensor
    b: Tensor | None = None


@pytest.mark.parametrize(
    "make", [lambda x: Pair(x + 1, 3), lambda x: Both(x + 1), lambda x: {"y": [x, x.shape[0]]}]
)
def test_results_that_are_objects(make: Callable[[Tensor], Any]) -> None:
    model = Function(make)
    flow, x = flow_of(model, torch.randn(2, 3)), torch.randn(5, 3)
    got, wanted = run(flow, model, x), model(x)
    assert type(got) is type(wanted) and repr(got) == repr(wanted)


def test_calls_of_layers_are_steps_of_their_modules() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6))
    assert [step.module for step in flow_of(model, torch.randn(2, 6)).steps] == ["0", "1", "2"]


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(6, 6), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


class Blocks(nn.Module):
    """Its own forward depends on data; its blocks share an activation."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.a, self.b = Block(act), Block(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if float(x.sum()) == float(x.sum()) else x


def test_children_of_what_cannot_be_exported() -> None:
    model = Blocks()
    found = captured(model, torch.randn(2, 6))
    assert [flow.path for flow in found.flows] == ["a", "b"] and "" in found.untraced
    x = torch.randn(3, 6)
    for flow in found.flows:
        assert torch.equal(run(flow, model, x), model.get_submodule(flow.path)(x))


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "random": (lambda x: x + torch.rand_like(x), "rand_like"),
    "values": (lambda x: x * float(x.sum()), ""),
    "few numbers of samples": (lambda x: x if x.shape[0] < 5 else -x, "samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    function, reason = REFUSED[name]
    found = captured(Function(function), torch.rand(2, 6))
    assert not found.flows and reason in found.untraced[""]


def test_nothing_is_disturbed(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    state, fast_path = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    handlers = [list(h.filters) for h in logging.getLogger("torch").handlers]
    with torch.inference_mode():
        captured(model, torch.ones(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert [list(h.filters) for h in logging.getLogger("torch").handlers] == handlers
    assert capfd.readouterr() == ("", "")
