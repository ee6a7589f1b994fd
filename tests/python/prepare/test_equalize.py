"""equalize: the same function, channels of like ranges, and less noise where activations share one
range.
"""

import copy

import pytest
import torch
from torch import nn

import octavo
from octavo.graph.capture import capture
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.prepare.equalize import equalize

X = torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def inverted(activation=nn.ReLU, channels=32) -> nn.Module:
    """Expand, depthwise, project, with channels of very different sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, channels, 1),
        activation(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        activation(),
        nn.Conv2d(channels, 8, 1),
    ).eval()
    with torch.no_grad():
        model[0].weight *= torch.logspace(0, 1.2, channels).view(-1, 1, 1, 1)
        model[2].weight *= torch.logspace(1, 0, channels)[torch.randperm(channels)].view(
            -1, 1, 1, 1
        )
    return model


def planned(model, x=X):
    return plan(capture(model, ((x[:2],), {})), Scheme(8), "static")


def test_the_function_stays_and_the_ranges_meet():
    model = inverted()
    twin = copy.deepcopy(model)
    done = equalize(twin, planned(twin), X)
    assert done.groups == ((("0",), ("2",)), (("2",), ("4",)))
    assert done.divided == {"0", "2"}
    with torch.no_grad():
        assert torch.allclose(twin(X), model(X), rtol=1e-4, atol=1e-4)

        def spread(m):
            largest = m[1](m[0](X)).amax((0, 2, 3))
            return float(largest.max() / largest.min())

        # Quiet channels are raised eightfold at most.
        assert spread(model) > 10 and spread(twin) < max(1.01, spread(model) / 8 * 1.01)


def test_less_noise_in_integers():
    model = inverted()
    with torch.no_grad():
        wanted = model(X)

        def noise(effort):
            made = octavo.quantize(model, 8, data=X, effort=effort, progress=False)
            return float((made(X) - wanted).square().mean())

        assert noise("balanced") < 0.6 * noise("fast")


def test_the_report_compares_in_the_scale_of_the_reference():
    model = inverted()
    fast = octavo.quantize(model, 8, data=X, progress=False)
    rows = octavo.report(fast, X, reference=model).rows
    assert [row.layer.equalized for row in rows] == [True, True, False]
    assert all(row.output_sqnr > 25 for row in rows)


class Stream(nn.Module):
    """A residual stream of two blocks between a stem and a head, as in MobileNetV2."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList([inverted(), inverted()])
        with torch.no_grad():
            self.stem.weight *= torch.logspace(0, 1, 8).view(-1, 1, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_sums_share_their_scales():
    model = Stream().eval()
    twin = copy.deepcopy(model)
    done = equalize(twin, planned(twin), X)
    writers, readers = next((w, r) for w, r in done.groups if "stem" in w)
    assert writers == ("stem", "blocks.0.4", "blocks.1.4")
    assert readers == ("blocks.0.0", "blocks.1.0", "head")
    with torch.no_grad():
        assert torch.allclose(twin(X), model(X), rtol=1e-3, atol=1e-2)


def hooked(model):
    model[2].register_forward_hook(lambda *_: None)
    return model


class Tied(nn.Module):
    """The expanding convolution runs twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x):
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


class Shown(nn.Module):
    """The value between the layers is returned too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return y, self.b(y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: inverted(nn.ReLU6),
        lambda: inverted(nn.SiLU),
        lambda: hooked(inverted()),
        lambda: Tied().eval(),
        lambda: Shown().eval(),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval(),
    ],
    ids=["relu6", "silu", "hooks", "called twice", "returned", "no depthwise"],
)
def test_what_is_left_alone(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    assert equalize(model, planned(model), X).groups == ()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dead_channels_and_few_samples():
    model = inverted()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = -1
    wanted = model(X).detach()
    equalize(model, planned(model), [X[:3], X[3:]])
    with torch.no_grad():
        assert torch.allclose(model(X), wanted, rtol=1e-4, atol=1e-4)
        assert all(bool(p.isfinite().all()) for p in model.parameters())
