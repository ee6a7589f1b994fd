"""rounding.bias: mean errors of output channels vanish, in regions, alone and over batches."""

import pytest
import torch
from torch import nn

from octavo.calibrate import calibrate
from octavo.capture import capture
from octavo.nn.registry import canonical_weight
from octavo.plan import plan
from octavo.rounding import correct_bias, nearest
from octavo.scheme import Scheme

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.7


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.ReLU(),
    ).eval()


def parts(model, x, bits, activations="static"):
    decided = plan(capture(model, ((x[:2],), {})), Scheme(bits), activations)
    params = calibrate(model, decided, x).qparams if activations == "static" else {}
    codes = {
        site.name: nearest(
            canonical_weight(model.get_submodule(site.name)),
            model.get_submodule(site.name).bias,
            site.scheme,
        )
        for site in decided.sites
    }
    return decided, params, codes


def channel_error(model, codes, x, corrected):
    """Mean error of the first layer's output channels with the given codes, its input exact."""
    layer = model[0]
    with torch.no_grad():
        wanted = layer(x)
        got = nn.functional.conv2d(x, codes.dequantize(), corrected, layer.stride, layer.padding)
    return (got - wanted).mean((0, 2, 3)).abs()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_first_layer_loses_its_mean_error(bits):
    model = network()
    decided, params, codes = parts(model, X, bits)
    found = correct_bias(model, decided, params, codes, X)
    before = channel_error(model, codes["0"], X, None)
    after = channel_error(model, codes["0"], X, found.codes["0"].bias)
    # What is left is the rounding of the input, which this check leaves out.
    assert float(after.mean()) < 0.2 * float(before.mean()) + 2e-4
    assert torch.equal(found.codes["0"].codes, codes["0"].codes)
    assert codes["0"].bias is None and found.codes["0"].bias.dtype == torch.float32


def test_layers_alone_are_corrected_on_the_float_input():
    model = network()
    decided, params, codes = parts(model, X, 3, "dynamic")
    assert not decided.flows
    found = correct_bias(model, decided, params, codes, X.split(8))
    before = channel_error(model, codes["0"], X, None)
    after = channel_error(model, codes["0"], X, found.codes["0"].bias)
    assert float(after.max()) < 1e-5 < float(before.mean())
    assert set(found.output_sqnr) == {"0", "2"}


def test_batches_are_averaged_by_size():
    model = network()
    decided, params, codes = parts(model, X, 3, "dynamic")
    whole = correct_bias(model, decided, params, codes, X).codes["0"].bias
    split = correct_bias(model, decided, params, codes, [X[:5], X[5:]]).codes["0"].bias
    assert torch.allclose(whole, split, atol=1e-6)


def test_the_model_comes_back_as_it_was():
    model = network()
    decided, params, codes = parts(model, X, 8)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    weights = [p.clone() for p in model.parameters()]
    correct_bias(model, decided, params, codes, X)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    assert all(map(torch.equal, weights, model.parameters()))


def test_a_layer_called_twice_is_corrected_once_for_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(64, 6)
    decided, params, codes = parts(model, x, 3)
    found = correct_bias(model, decided, params, codes, x)
    shift = (found.codes["layer"].bias - codes["layer"].bias).abs()
    assert 0 < float(shift.max()) < 1
