"""calibrate: ranges of exactly the values that stay in integers, whatever the form and the split of
the data.
"""

import dataclasses

import pytest
import torch
from torch import nn

from octavo.api import _UNEVEN
from octavo.errors import CalibrationError
from octavo.graph.capture import capture
from octavo.graph.keys import SiteKey, ValueKey
from octavo.numerics.ranges import RULES
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.prepare.calibrate import calibrate, without_unreached
from octavo.rounding.lockstep import fake_quantize, fake_quantize_rows


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def planned(model, example, bits=8, **kwargs):
    return plan(capture(model, ((example,), {})), Scheme(bits), "static", **kwargs)


X = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_every_value_of_a_region_has_parameters():
    model = network()
    decided = planned(model, X[:2])
    result = calibrate(model, decided, X)
    (flow,) = decided.flows
    (region,) = flow.regions
    assert set(result.qparams) == {ValueKey("", root) for root in region.params_of.values()}
    assert result.samples == 24 and result.batches == 1 and not result.unreached
    assert "24 samples in 1 batches" in str(result)


def test_minmax_is_what_the_layers_saw():
    model = network()
    decided = planned(model, X[:2])
    result = calibrate(model, decided, X, ranges="minmax")
    with torch.no_grad():
        hidden = model[1](model[0](X))
    (entry,) = decided.flows[0].regions[0].inputs
    scale = result.qparams[ValueKey("", entry)].scale
    assert scale == pytest.approx(float(X.max() - X.min()) / 255, rel=1e-6)
    scales = [p.scale for p in result.qparams.values()]
    assert any(s == pytest.approx(float(hidden.max()) / 255, rel=1e-6) for s in scales)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parts", [2, 5, 24])
def test_the_split_into_batches_does_not_matter(rule, parts):
    model = network()
    decided = planned(model, X[:2])
    whole = calibrate(model, decided, X, ranges=rule)
    # Batches of other sizes may take other paths through torch's convolution: the last bit of a
    # float may differ.
    entry = ValueKey("", decided.flows[0].regions[0].inputs[0])
    split = calibrate(model, decided, X.chunk(parts), ranges=rule)
    assert split.qparams[entry] == whole.qparams[entry]
    for key, p in whole.qparams.items():
        assert split.qparams[key].scale == pytest.approx(p.scale, rel=1e-5)
        assert split.qparams[key].zero_point == p.zero_point


@pytest.mark.parametrize("bits", range(2, 9))
def test_narrow_activations_are_those_of_the_layers_inputs(bits):
    model = network()
    result = calibrate(model, planned(model, X[:2], activation_bits=bits), X)
    found = sorted(p.bits for p in result.qparams.values())
    # The input of the model keeps 8 bits; the inputs of the second convolution and of the linear
    # layer do not.
    assert found.count(8) >= 1 and (bits == 8 or found.count(bits) == 2)


class Branches(nn.Module):
    """Its second layer is reached only on request, and it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)

    def forward(self, x, both=False):
        if float(x.sum()) > 1e9:
            return x
        x = self.a(x)
        return self.b(x) if both else x


def test_layers_outside_of_flows_are_seen_by_hooks_that_are_gone_afterwards():
    model = Branches().eval()
    x = torch.randn(5, 6)
    decided = planned(model, x)
    assert not decided.flows
    result = calibrate(model, decided, [x], ranges="minmax")
    assert set(result.qparams) == {SiteKey("a")} and result.unreached == (SiteKey("b"),)
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    assert result.qparams[SiteKey("a")].scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())

    degraded = without_unreached(decided, result)
    rows = {site.name: site for site in degraded.sites}
    assert rows["a"].activations == "static"
    assert rows["b"].activations == "dynamic" and rows["b"].reason == "never reached by data"


def test_no_layer_reached():
    model = Branches().eval()
    decided = planned(model, torch.randn(5, 6))
    result = calibrate(model, decided, [torch.full((1, 6), 1e9)])
    with pytest.raises(CalibrationError, match=r"got none of 2 \('a', 'b'\) in 1 batches"):
        without_unreached(decided, result)


def tokens_with_giants(samples: int, padding: int = 0) -> torch.Tensor:
    """[samples, 20 + padding, 32]: one token of each sample holds a value 100 times the rest."""
    x = torch.randn(samples, 20 + padding, 32, generator=torch.Generator().manual_seed(2))
    x[:, 3, 5] = 100.0
    x[:, 20:] = 0.0
    return x


@pytest.mark.parametrize("padding", [0, 60])
@pytest.mark.parametrize("flat", [False, True], ids=["rows of samples", "flattened rows"])
def test_what_every_sample_holds_is_not_clipped(padding, flat):
    model = nn.Sequential(nn.Flatten(0, 1) if flat else nn.Identity(), nn.Linear(32, 8)).eval()
    x = tokens_with_giants(300, padding)
    decided = planned(model, x[:2])
    whole, split = calibrate(model, decided, x), calibrate(model, decided, x.split(7))
    assert split == dataclasses.replace(whole, batches=43)
    for p in whole.qparams.values():
        assert (p.qmax - p.zero_point) * p.scale > 99
    # The other rows span a thirtieth.
    assert whole.by_rows.keys() == {"1"} and whole.by_rows["1"] > 10


def test_rows_that_are_alike_gain_little():
    model = nn.Sequential(nn.Linear(768, 8)).eval()
    x = torch.randn(50, 20, 768, generator=torch.Generator().manual_seed(3))
    (gain,) = calibrate(model, planned(model, x[:2]), x).by_rows.values()
    assert 1 < gain < _UNEVEN


def test_gain_of_rows_is_that_of_the_errors():
    model = nn.Sequential(nn.Linear(32, 8)).eval()
    x = tokens_with_giants(50)
    found = calibrate(model, planned(model, x[:2]), x)
    (p,) = found.qparams.values()
    with_one, with_rows = fake_quantize(x, p), fake_quantize_rows(x, 0)
    gain = float((with_one - x).square().mean() / (with_rows - x).square().mean())
    assert found.by_rows["0"] == pytest.approx(gain, rel=0.05)


def test_integers_between_layers_are_not_given_up_for_rows():
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    x = tokens_with_giants(10).flatten(0, 1)
    assert calibrate(model, planned(model, x[:2]), x).by_rows == {}


def test_huge_values_have_finite_spans():
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    x = torch.tensor([[-3e38, 3e38, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    (gain,) = calibrate(model, planned(model, x), x).by_rows.values()
    assert 0 < gain < 1e3


def test_the_model_comes_back_as_it_was():
    model = network()
    decided = planned(model, X[:2])
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}

    def fails(m):
        m(X)
        raise KeyboardInterrupt

    for data, error in (
        (fails, KeyboardInterrupt),
        ([X, torch.full_like(X, torch.nan)], ValueError),
    ):
        with pytest.raises(error):
            calibrate(model, decided, data)
        after = {name: dict(module.__dict__) for name, module in model.named_modules()}
        assert after == before


def test_a_value_that_is_not_finite_is_named():
    model = network()
    decided = planned(model, X[:2])
    bad = X.clone()
    bad[3, 0, 0, :2] = torch.inf
    with pytest.raises(
        ValueError,
        match=r"the input of the model must be finite, got 2 NaN or infinite values of 2592 in batch 1",
    ):
        calibrate(model, decided, [X, bad])
    with torch.no_grad():
        model[0].weight[2] = 3e38
    with pytest.raises(
        ValueError, match=r"the output of layer '[01]' must be finite, got \d+ NaN or inf"
    ):
        calibrate(model, decided, [X * 1e3])


def test_constant_data_warns():
    model = network()
    decided = planned(model, X[:2])
    with pytest.warns(UserWarning, match=r"\d+ values never changed in the data"):
        calibrate(model, decided, [torch.zeros(2, 3, 6, 6)])
