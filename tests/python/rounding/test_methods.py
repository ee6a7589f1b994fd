"""Every row of the table of methods: codes in range, better than plain rounding, right messages."""

import importlib

import pytest
import torch
from torch import nn

import octavo
from octavo.nn.layer import QLayer
from octavo.numerics.scheme import Scheme
from octavo.rounding import METHODS, choose

X = torch.randn(96, 3, 10, 10, generator=torch.Generator().manual_seed(1)).cumsum(3)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning in a tenth of the steps."""
    module = importlib.import_module("octavo.rounding.methods.qdrop")
    monkeypatch.setattr(module.LearnableCodes, "steps", 60)
    monkeypatch.setattr(module.LearnableScales, "steps", 30)


class Network(nn.Module):
    """Plain, depthwise and pointwise convolutions and a head, with correlated inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1)
        self.wide = nn.Conv2d(24, 24, 3, groups=2)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        for layer in (self.stem, self.depth, self.point, self.wide):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def decibels(wanted, got):
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", METHODS)
def test_codes_lie_in_range_and_outputs_are_near(name, bits):
    torch.manual_seed(0)
    model = Network().eval()
    data = X if METHODS[name].needs_data else None
    made = octavo.quantize(model, bits, data=data, rounding=name, progress=False)
    for layer in (m for m in made.modules() if isinstance(m, QLayer)):
        codes = layer.codes()
        assert -(2 ** (bits - 1)) <= int(codes.min()) and int(codes.max()) < 2 ** (bits - 1)
    with torch.no_grad():
        assert decibels(model(X), made(X)) > {2: 0, 3: 5, 4: 11}[bits]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_beats_plain_rounding_with_corrected_biases(bits):
    torch.manual_seed(0)
    model = Network().eval()
    fresh = torch.randn(64, 3, 10, 10).cumsum(3)
    with torch.no_grad():
        wanted = model(fresh)
        kept = {
            name: decibels(
                wanted, octavo.quantize(model, bits, data=X, rounding=name, progress=False)(fresh)
            )
            for name in ("nearest", "gptq")
        }
    assert kept["gptq"] > kept["nearest"] + 2, kept


@pytest.mark.parametrize("activations", ["dynamic", 8, 4])
def test_gptq_with_every_kind_of_activations(activations):
    torch.manual_seed(0)
    model = Network().eval()
    made = octavo.quantize(model, 4, data=X, activations=activations, progress=False)
    with torch.no_grad():
        assert decibels(model(X), made(X)) > (10 if activations == 4 else 15)


def test_same_data_in_other_batches_gives_nearly_the_same_codes():
    torch.manual_seed(0)
    model = Network().eval()
    one = octavo.quantize(model, 4, data=X, progress=False)
    two = octavo.quantize(model, 4, data=list(X.split(7)), progress=False)
    for name in ("stem", "point", "head"):
        same = one.get_submodule(name).codes() == two.get_submodule(name).codes()
        assert float(same.float().mean()) > 0.9


def test_the_choice_is_said_and_kept():
    torch.manual_seed(0)
    model = Network().eval()
    notes = octavo.report(octavo.quantize(model, 4, progress=False)).notes
    assert "rounding 'squant' chosen for 4 bits, no data, effort 'balanced'" in notes
    notes = octavo.report(octavo.quantize(model, {"*": 8, "head": 3}, X, progress=False)).notes
    assert "rounding 'gptq' chosen for 3 bits, data, effort 'balanced'" in notes
    notes = octavo.report(octavo.quantize(model, 8, progress=False)).notes
    assert "rounding 'squant' chosen for a network with depthwise convolutions" in notes
    plain = octavo.quantize(nn.Conv2d(3, 8, 3).eval(), 8, progress=False)
    assert not any("rounding" in n for n in octavo.report(plain).notes)


@pytest.mark.parametrize(
    ("widths", "data", "effort", "name"),
    [
        ([8, 6], True, "balanced", "nearest"),
        ([8, 5], True, "balanced", "gptq"),
        ([4], False, "balanced", "squant"),
        ([4], True, "fast", "nearest"),
        ([4], True, "best", "qdrop"),
        ([], False, "balanced", "nearest"),
    ],
)
def test_choice(widths, data, effort, name):
    assert choose(widths, data, effort)[0] == name


def test_choice_for_depthwise_convolutions():
    assert choose([8], True, "balanced", depthwise=True)[0] == "gptq"
    assert choose([8], True, "fast", depthwise=True)[0] == "nearest"
    assert choose([8], False, "balanced", depthwise=True)[0] == "squant"


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.from_weight])
@pytest.mark.parametrize("group", [0, 32])
def test_a_weight_that_is_a_view(name, group):
    """transformers' Conv1D holds [in, out]: its canonical weight is a view."""
    layer = nn.Linear(64, 24)
    turned = layer.weight.detach().t().contiguous().t()
    scheme, round_ = Scheme(4, "linear", group), METHODS[name].from_weight
    found, wanted = (round_(layer, w, scheme) for w in (turned, layer.weight.detach()))
    assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)


def test_methods_that_need_data_say_so():
    with pytest.raises(ValueError, match="data must be batches for rounding='gptq', got None"):
        octavo.quantize(nn.Sequential(nn.Linear(8, 8)), 4, rounding="gptq")


def test_layers_that_data_never_reaches_are_rounded_without():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dead = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.used(x)

    made = octavo.quantize(Dead().eval(), 4, data=torch.randn(32, 16), progress=False)
    assert isinstance(made.dead, QLayer)
    assert "rounded without data, which never reached them: 'dead'" in octavo.report(made).notes


def test_inference_mode_of_the_caller_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()  # fmt: skip
    data, x = [torch.randn(8, 3, 8, 8) for _ in range(3)], torch.randn(2, 3, 8, 8)
    for effort in ("balanced", "best"):
        wanted = octavo.quantize(model, 3, data, effort=effort, progress=False)
        with torch.inference_mode():
            mine = [batch.clone() for batch in data]
            got = octavo.quantize(model, 3, mine, effort=effort, progress=False)
        assert torch.equal(got(x), wanted(x))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_calls_of_the_model_record_no_gradients(rounding):
    recorded = set()

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x):
            recorded.add(torch.is_grad_enabled())
            return self.b(self.norm(self.a(x)))

    data = [torch.randn(8, 16)]
    octavo.quantize(Watching().eval(), 4, data, rounding=rounding, progress=False)
    octavo.quantize(Watching(), 4, data, qat=True, progress=False)
    assert recorded == {False}


def test_wide_layers_are_rounded_plainly_where_gptq_is_for_depthwise_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(), nn.Conv2d(16, 200, 1), nn.ReLU(), nn.Conv2d(200, 8, 3),
    ).eval()  # fmt: skip
    model[1].running_var.uniform_(1e-4, 4)
    x = torch.randn(8, 3, 12, 12)
    small = octavo.quantize(model, 8, data=[x], progress=False)
    assert any("'gptq' chosen" in note for note in octavo.report(small).notes)
    plain = octavo.quantize(model, 8, data=[x], rounding="nearest", progress=False)
    gptq = octavo.quantize(model, 8, data=[x], rounding="gptq", progress=False)
    wide, narrow = "7", "5"
    codes = [{n: m.get_submodule(n).codes() for n in (wide, narrow)} for m in (small, plain, gptq)]
    assert torch.equal(codes[0][wide], codes[1][wide])
    assert torch.equal(codes[0][narrow], codes[2][narrow])
    assert not torch.equal(codes[2][wide], codes[1][wide])
    with torch.no_grad():
        error = (small(x) - model(x)).mean((0, 2, 3)).abs().max()
        spread = (small(x) - model(x)).std()
    assert float(error) < 0.5 * float(spread)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "how", [{}, {"rounding": "adaround"}, {"effort": "best"}, {"rounding": "nearest"}], ids=str
)
@pytest.mark.filterwarnings("ignore:quantize. float64 parameters")
@torch.no_grad()
def test_float_steps_between_layers_get_values_of_their_type(dtype, how):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    ).to(dtype)  # fmt: skip
    x = torch.randn(64, 32, dtype=dtype)
    y, wanted = octavo.quantize(model.eval(), 4, data=[x], progress=False, **how)(x), model(x)
    assert y.dtype == dtype
    assert float((y - wanted).double().norm() / wanted.double().norm()) < 0.12
