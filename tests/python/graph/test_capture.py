"""Capture: which calls become which steps, what is refused, and that the model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from octavo.graph.capture import Capture, capture
from octavo.graph.flow import from_data, run, to_data


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> Capture:
    return capture(model.eval(), (args, kwargs))


def kinds(model: nn.Module, *args: Any) -> list[str]:
    (flow,) = captured(model, *args).flows
    return [step.kind for step in flow.steps]


class Function(nn.Module):
    """A forward that is one expression."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


IMAGE = (2, 6, 5, 4)
EXPRESSIONS = {
    "flatten": (lambda x: torch.flatten(x, 1), "flatten"),
    "view by size": (lambda x: x.view(x.size(0), -1), "flatten"),
    "reshape by shape": (
        lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
        "flatten",
    ),
    "view by numbers": (lambda x: x.view(-1, 120), "flatten"),
    "channel shuffle": (_shuffle, "gather_channels"),
    "chunk": (lambda x: x.chunk(2, dim=1)[1], "gather_channels"),
    "split": (lambda x: torch.split(x, [2, 4], dim=1)[0], "gather_channels"),
    "channel slice": (lambda x: x[:, 1:4], "gather_channels"),
    "one channel": (lambda x: torch.unsqueeze(x[:, 2], 1), "gather_channels"),
    "strided slice": (lambda x: x[:, :, ::2, ::2], "slice"),
    "offset slice": (lambda x: x[..., 1:, :], "slice"),
    "slice as long as the example": (lambda x: x[:, :, :5], "identity"),
    "slice from the end": (lambda x: x[..., :-1], "float"),
    "to rows": (lambda x: x.permute(0, 2, 3, 1), "to_rows"),
    "channel padding": (lambda x: F.pad(x, (0, 0, 0, 0, 3, 3), "constant", 0), "gather_channels"),
    "padding": (lambda x: F.pad(x, (1, 0, 2, 1)), "pad"),
    "mean": (lambda x: x.mean([2, 3]), "adaptive_avg_pool"),
    "mean twice": (lambda x: x.mean(3).mean(2), "adaptive_avg_pool"),
    "mean kept": (lambda x: torch.mean(x, (-1, -2), keepdim=True), "adaptive_avg_pool"),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (2, None)), "adaptive_avg_pool"),
    "max pool": (lambda x: F.max_pool2d(x, 2, 1), "max_pool"),
    "average pool": (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), "avg_pool"),
    "whole average pool": (lambda x: F.avg_pool2d(x, x.size()[2:]), "avg_pool"),
    "upsample": (lambda x: F.interpolate(x, scale_factor=2.0), "upsample_nearest"),
    "swish": (lambda x: x * torch.sigmoid(x), "unary"),
    "hard swish": (lambda x: x * F.relu6(x + 3) / 6, "unary"),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), "unary"),
    "scalar": (lambda x: 1 - x / 3, "unary"),
    "square": (lambda x: x * x, "unary"),
    "clamp": (lambda x: x.clamp(min=-1), "unary"),
    "identity": (lambda x: F.dropout(x.contiguous(), 0.5, False), "identity"),
    "concat": (lambda x: torch.cat([x, x], 1), "concat"),
    "batch concat": (lambda x: torch.cat([x, x], 0), "float"),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), "float"),
    "negative step of time": (lambda x: x.flip(1), "float"),
    "non-zero padding": (lambda x: F.pad(x, (1, 1), value=1.0), "float"),
    "softmax": (lambda x: x.softmax(1), "float"),
    "wrong mean": (lambda x: x.mean(1), "float"),
}


@pytest.mark.parametrize("name", EXPRESSIONS, ids=str)
def test_expression(name: str) -> None:
    function, kind = EXPRESSIONS[name]
    x = torch.randn(IMAGE)
    (flow,) = captured(Function(function), x).flows
    kinds = [step.kind for step in flow.steps]
    while len(kinds) > 1 and kinds[-1] == "identity":  # A slice that takes everything.
        kinds.pop()
    assert kinds[-1] == kind, str(flow)
    y = torch.randn(3, 6, 5, 4)
    assert torch.equal(run(flow, nn.Module(), y), function(y))
    assert from_data(to_data(flow)) == flow


def test_gather_index_and_slice_params() -> None:
    x = torch.randn(IMAGE)
    (flow,) = captured(Function(_shuffle), x).flows
    assert flow.steps[-1].params["index"] == [0, 3, 1, 4, 2, 5]
    (flow,) = captured(Function(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))), x).flows
    assert flow.steps[-1].params["index"] == [-1, 0, 1, 2, 3, 4, 5, -1, -1]
    (flow,) = captured(Function(lambda x: x[:, :, 1::2, :3]), x).flows
    assert flow.steps[-1].params == {"h": [1, -1, 2], "w": [0, 3, 1]}


def test_fixed_batch_is_no_flatten() -> None:
    """A batch size written out may not become a flatten that serves every batch."""
    assert kinds(Function(lambda x: x.view(2, -1)), torch.randn(IMAGE)) == ["float"]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)
        self.beta = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("shift", torch.rand(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.beta - self.shift.abs()


def test_parameters_make_affine_steps() -> None:
    (flow,) = captured(Gated(), torch.randn(IMAGE)).flows
    assert [step.kind for step in flow.steps] == ["conv", "affine", "affine"]
    assert flow.steps[1].params == {"layout": "image", "channels": 6, "result": "mul"}


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.relu(y)
        y.add_(1)
        return y + z


def test_in_place_calls_change_later_readers() -> None:
    """After relu and add_ in place, y and z are one tensor, and both are read later."""
    model, x = InPlace(), torch.randn(IMAGE)
    (flow,) = captured(model, x).flows
    assert torch.equal(run(flow, model, x), model(x))


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.last: Any = None
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.fc(x)
        self.seen.append(self.last)
        return self.last


def test_model_is_left_as_it_was() -> None:
    """The example itself runs the model; tracing must leave no Proxy and no hook behind."""
    model = nn.Sequential(Leaky(), nn.Dropout()).eval()
    before = [(m, m.training, set(vars(m))) for m in model.modules()]
    captured(model, torch.randn(2, 6))
    assert all(m.training == training and set(vars(m)) == names for m, training, names in before)
    assert model[0].last is None and not model[0].seen
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    capture(model)
    assert all(isinstance(value, Tensor) for value in model[0].seen)


class Branch(nn.Module):
    """The branch is one of Python's, which the graph of the computation does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + 1 if isinstance(x, Tensor) else y


def test_branches_of_python_are_followed() -> None:
    model, x = Branch().eval(), torch.randn(3, 6)
    (flow,) = captured(model, torch.randn(2, 6)).flows
    assert flow.path == "" and torch.equal(run(flow, model, x), model(x))


class Counting(nn.Module):
    """Every call computes something else, by a number that no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.block(x) * self.calls


def test_forwards_that_change_attributes_are_refused() -> None:
    found = captured(Counting(), torch.randn(2, 6))
    assert [flow.path for flow in found.flows] == ["block"]
    assert list(found.untraced) == [""]


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Any:
        y = self.fc(x) * scale
        return {"out": y if mask is None else y * mask, "pair": (y, [scale])}


def test_constants_come_from_the_call() -> None:
    x, mask = torch.randn(2, 6), torch.rand(2, 6)
    (flow,) = captured(Choosing(), x, scale=2.0).flows
    assert (flow.parameters, dict(flow.constants)) == (("x",), {"scale": 2.0, "mask": None})
    model = Choosing().eval()
    (flow,) = captured(model, x, mask=mask).flows
    assert flow.parameters == ("x", "mask")
    result = run(flow, model, x, mask)
    assert list(result) == ["out", "pair"] and torch.equal(
        result["out"], model(x, mask=mask)["out"]
    )


REFUSED = {
    "control flow": (lambda x: x if x.sum() > 0 else -x, "control flow"),
    "random": (lambda x: torch.rand_like(x) + x, "it calls 'rand_like'"),
    "training dropout": (lambda x: F.dropout(x, 0.5, True), "something else"),
    "writing": (lambda x: x.copy_(x), "it calls 'copy_'"),
    "length": (len, "cannot be traced"),
}


@pytest.mark.parametrize("name", REFUSED, ids=str)
def test_refused_with_a_reason(name: str) -> None:
    function, reason = REFUSED[name]
    found = captured(Function(function), torch.rand(3, 4) + 0.1)
    assert not found.flows
    assert reason in found.untraced[""]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a
        self.c = nn.Linear(6, 6)
        self.c.weight = self.a.weight
        self.unused, self.norm = nn.Linear(2, 2), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.c(self.b(self.a(x))))


def test_sites() -> None:
    found = captured(Shared(), torch.randn(2, 6))
    sites = {site.name: site for site in found.sites}
    assert list(sites) == ["a", "c", "norm", "unused"]
    assert sites["a"].calls == 2 and sites["a"].aliases == ("b",) and sites["a"].tied == ("c",)
    assert sites["unused"].calls == 0
    assert sites["a"].reason == "" and "no integer form" in sites["norm"].reason
    (flow,) = found.flows
    assert [step.module for step in flow.steps] == ["a", "a", "c", "norm"]
    assert "weight tied to c" in str(found)


def test_without_example() -> None:
    (flow,) = capture(Shared().eval()).flows
    assert [step.kind for step in flow.steps] == ["linear", "linear", "linear", "float"]
    assert not flow.shapes


def test_a_callable_runs_the_model() -> None:
    model = Choosing().eval()
    (flow,) = capture(model, lambda m: m(torch.randn(2, 6), scale=3.0)).flows
    assert flow.constants["scale"] == 3.0


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("padding", "expected"), [("same", [1, 1, 2, 1]), ("valid", [0, 0, 0, 0]), (1, [1, 1, 1, 1])]
)
def test_padding_of_convolutions(padding: Any, expected: list[int]) -> None:
    (flow,) = captured(
        nn.Sequential(nn.Conv2d(3, 4, (4, 3), padding=padding)), torch.randn(1, 3, 9, 9)
    ).flows
    assert flow.steps[0].params["pad"] == expected


@pytest.mark.parametrize("while_tracing", [True, False], ids=["tracing", "running the steps"])
def test_memory_that_ends_is_no_reason_to_leave_a_module_out(
    while_tracing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would be quantized in part, and nothing but the report would say so."""

    def ends(*_: Any) -> Tensor:
        raise MemoryError

    model = Function(lambda x: ends() if while_tracing and isinstance(x, FakeTensor) else F.relu(x))
    if not while_tracing:
        monkeypatch.setattr("octavo.graph.agreement.walk", ends)
    with pytest.raises(MemoryError):
        captured(model, torch.randn(2, 3))
