"""rounding.bias: mean errors of output channels vanish, in regions, alone and over batches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from octavo.graph.capture import capture
from octavo.nn.registry import canonical_weight
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.prepare.calibrate import calibrate
from octavo.rounding import bias, correct_bias, nearest

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
        if site.scheme
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


def outlier_network() -> nn.Module:
    """Unit 3 of the first layer is giant where x has a share of the direction ``u``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).eval()
    with torch.no_grad():
        model[0].weight[3] = 40 * u()
        model[2].weight[:, 3] *= 10
    return model


def u() -> torch.Tensor:
    seeded = torch.Generator().manual_seed(5)
    return nn.functional.normalize(torch.randn(64, generator=seeded), dim=0)


def tokens(sequences: int, seed: int) -> torch.Tensor:
    """[sequences, 32, 64]: the first token of each is an outlier."""
    x = torch.randn(sequences, 32, 64, generator=torch.Generator().manual_seed(seed))
    x -= (x @ u())[..., None] * u()
    x[:, 0] += 4 * u()
    return x


@pytest.mark.parametrize("cut", ["sequences", "tokens"])
def test_what_few_positions_carry_does_not_move_biases(cut):
    """Also where each batch is one position, whose error its own mean would take away."""
    model, data = outlier_network(), tokens(12, 1)
    batches = data.split(4) if cut == "sequences" else data.flatten(0, 1)[:96, None].split(1)
    decided, params, codes = parts(model, data, 8)
    # The range of the second layer's input clips the giants.
    params = {k: replace(p, scale=min(p.scale, 0.1)) for k, p in params.items()}
    found = correct_bias(model, decided, params, codes, list(batches))
    moved = (found.codes["2"].bias - codes["2"].bias).abs().max()
    with torch.no_grad():
        ordinary = model(data)[:, 1:].abs().mean()
    assert float(moved) < 0.02 * float(ordinary)


@pytest.mark.parametrize("where", ["", "0", "2"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_layers_behind_hooks_are_left_alone(where, kind):
    model = network()
    decided, params, codes = parts(model, X, 4)
    module = model.get_submodule(where)
    if kind == "forward_hook":
        handle = module.register_forward_hook(lambda _module, _args, y: y * 2 + 1)
    else:
        handle = module.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    found = correct_bias(model, decided, params, codes, X)
    seen = {"": {"0", "2"}}.get(where, {where})
    assert {name for name in codes if found.codes[name].bias is codes[name].bias} >= seen
    assert not seen & set(found.output_sqnr)
    handle.remove()
    assert correct_bias(model, decided, params, codes, X).codes["0"].bias is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float_steps_get_values_of_their_type(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 8)).eval().to(dtype)
    x = torch.randn(64, 32, dtype=dtype)
    decided, params, codes = parts(model, x, 3)
    found = correct_bias(model, decided, params, codes, x)
    assert set(found.output_sqnr) == {"0", "2"}
    assert found.codes["0"].bias.dtype == torch.float32


def test_results_of_a_captured_module_have_the_last_word(monkeypatch):
    """Shifts that help each layer are given up where the module's result gets worse."""
    model = network()
    decided, params, codes = parts(model, X, 2)
    assert correct_bias(model, decided, params, codes, X).codes["0"].bias is not None
    nearer = bias._distance
    monkeypatch.setattr(bias, "_distance", lambda wanted, got: -nearer(wanted, got))
    found = correct_bias(model, decided, params, codes, X)
    assert all(found.codes[name].bias is codes[name].bias for name in codes)


def test_fitted_biases_are_only_measured():
    model = network()
    decided, params, codes = parts(model, X, 4)
    found = correct_bias(model, decided, params, codes, X, fitted=True)
    assert all(found.codes[name] is codes[name] for name in codes)
    assert set(found.output_sqnr) == {"0", "2"}
