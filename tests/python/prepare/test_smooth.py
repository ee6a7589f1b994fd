"""smooth: the same function, outliers moved into weights, less noise; left alone where it must."""

import copy

import pytest
import torch
from torch import nn

import octavo
from octavo.graph.capture import capture
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.prepare.smooth import smooth

X = torch.randn(32, 7, 48, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Pre-norm feed-forward with a few loud channels behind the normalisation."""

    def __init__(self, norm=nn.LayerNorm, keep=False):
        super().__init__()
        self.norm = norm(48)
        self.up, self.gate, self.down = nn.Linear(48, 96), nn.Linear(48, 96), nn.Linear(96, 48)
        self.keep = keep
        with torch.no_grad():
            self.norm.weight[:3] = 40.0

    def forward(self, x):
        h = self.norm(x)
        y = x + self.down(torch.relu(self.up(h)) * self.gate(h))
        return y + h if self.keep else y


def made(**options):
    torch.manual_seed(0)
    return Block(**options).eval()


def done_to(model, activations="dynamic", bits=8):
    found = capture(model, ((X[:2],), {}))
    return smooth(model, plan(found, Scheme(bits), activations), found.flows, [X])


def decibels(wanted, got):
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("activations", ["dynamic", "static", "float"])
def test_the_function_stays_and_outliers_go(norm, activations):
    model = made(norm=norm)
    twin = copy.deepcopy(model)
    done = done_to(twin, activations, 4)
    assert done.pairs == (("norm", ("up", "gate")),)
    assert str(done) == "norm -> up, gate"
    with torch.no_grad():
        assert torch.allclose(twin(X), model(X), rtol=1e-4, atol=1e-3)

        def outliers(m):
            largest = m.norm(X).abs().amax((0, 1))
            return float(largest.max() / largest.median())

        assert outliers(twin) < 0.7 * outliers(model)
    assert twin.down.weight is not model.down.weight
    assert torch.equal(twin.down.weight, model.down.weight)


def test_less_noise_in_integers():
    model = made()
    kept = {}
    for effort in ("fast", "balanced"):
        small = octavo.quantize(model, 8, [X], activations="dynamic", effort=effort, progress=False)
        with torch.no_grad():
            kept[effort] = decibels(model(X) - X, small(X) - X)
        said = any("moved into the linear layers" in n for n in octavo.report(small).notes)
        assert said == (effort == "balanced")
    assert kept["balanced"] > kept["fast"] + 3, kept


def hooked(model):
    model.norm.register_forward_hook(lambda *_: None)
    return model


def tied(model):
    model.gate.weight = model.up.weight
    return model


def called_elsewhere(model):
    """The parent is not traced, and uses a layer of the block on its own."""

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = model

        def forward(self, x):
            return self.block(x) + (self.block.up(x) if float(x.sum()) > -1e9 else x).mean()

    return Parent().eval()


@pytest.mark.parametrize(
    "model",
    [made(keep=True), hooked(made()), tied(made()), called_elsewhere(made())],
    ids=["read by a sum too", "hooked", "tied weights", "used elsewhere"],
)
def test_left_alone(model):
    before = copy.deepcopy(model.state_dict())
    assert done_to(model).pairs == ()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
