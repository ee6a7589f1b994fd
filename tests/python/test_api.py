"""api: the pipeline from end to end on small models."""

import collections
import copy
import json
import os
import threading
import types

import pytest
import torch
from torch import nn

import octavo
from octavo.graph.capture import capture
from octavo.nn.layer import QLayer
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.runtime.captured_forward import captured_forward


class Small(nn.Module):
    """Convolution, BatchNorm, residual add, concat, pooling, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.a(x))
        x = torch.cat([x, self.b(x)], 1)
        return self.head(x.mean((2, 3)))


def small() -> Small:
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 8, 8))
    return model.eval()


X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def decibels(wanted, got):
    wanted, got = wanted.detach(), got.detach()
    return float(10 * torch.log10(wanted.square().sum() / (wanted - got).square().sum()))


def test_the_whole_model_is_one_region():
    model = small()
    fast = octavo.quantize(model, 8, data=X, progress=False)
    assert type(fast) is Small and fast is not model
    assert [n for n, m in fast.named_modules() if isinstance(m, QLayer)] == [
        "stem",
        "a",
        "b",
        "head",
    ]
    assert captured_forward(fast) is not None
    with torch.no_grad():
        assert decibels(model(X), fast(X)) > 30
    report = octavo.report(fast, X)
    assert {row.layer.region for row in report.rows if row.layer.bits} == {"#0"}
    assert report.multiplies.integer_share == 1.0


# Decibels that each width must keep on this network, a few below what it does keep.
DYNAMIC = {8: 36, 7: 30, 6: 24, 5: 18, 4: 12, 3: 6, 2: 0.5}


@pytest.mark.parametrize("bits", DYNAMIC)
def test_every_width_without_data(bits):
    model = small()
    made = octavo.quantize(model, bits, progress=False)
    with torch.no_grad():
        assert decibels(model(X), made(X)) > DYNAMIC[bits]
    for layer in (m for m in made.modules() if isinstance(m, QLayer)):
        codes = layer.codes()
        assert layer.bits == bits and int(codes.abs().max()) <= 2 ** (bits - 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_of_activations(bits):
    model = small()
    made = octavo.quantize(model, (8, bits), data=X, progress=False)
    plain = octavo.quantize(model, 8, data=X, progress=False)
    with torch.no_grad():
        kept, full = (decibels(model(X), m(X)) for m in (made, plain))
    assert kept <= full + 1 and kept > 6 * bits - 16


def test_mixed_widths_and_exceptions():
    made = octavo.quantize(
        small(), {"*": 4, "@first": 8, "head": 6}, data=X, exclude="b", progress=False
    )
    assert {r.layer.name: r.layer.bits for r in octavo.report(made).rows} == {
        "stem": 8, "a": 4, "b": 0, "head": 6
    }  # fmt: skip
    assert type(made.b) is nn.Conv2d
    made(X)


def test_data_corrects_biases_and_fast_does_not():
    model = small()
    with torch.no_grad():
        wanted = model(X)
        balanced = octavo.quantize(model, 3, data=X, progress=False)(X)
        fast = octavo.quantize(model, 3, data=X, effort="fast", progress=False)(X)
    assert (balanced - wanted).mean(0).abs().mean() < 0.5 * (fast - wanted).mean(0).abs().mean()


@pytest.mark.parametrize(
    "data",
    [
        lambda: X,
        lambda: [X[:32], X[32:]],
        lambda: iter([X[:32], X[32:]]),
        lambda: [(X, torch.zeros(64))],
        lambda: [{"x": X}],
        lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), 64),
        lambda: lambda model: model(X),
    ],
    ids=["tensor", "list", "iterator", "labels", "mapping", "loader", "callable"],
)
def test_every_form_of_data_gives_a_region(data):
    fast = octavo.quantize(small(), 8, data=data(), progress=False)
    assert captured_forward(fast) is not None


def test_the_input_model_is_not_changed():
    model = small().train()
    state = copy.deepcopy(model.state_dict())
    attributes = {name: set(m.__dict__) for name, m in model.named_modules()}
    fast = octavo.quantize(model, 8, data=X, progress=False)
    assert model.training and not fast.training
    assert {name: set(m.__dict__) for name, m in model.named_modules()} == attributes
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert any("training mode" in note for note in octavo.report(fast).notes)


def test_inplace_changes_the_model_or_nothing():
    model = small()
    wanted = octavo.quantize(model, 8, data=X, progress=False)(X)

    def interrupted(m):
        m(X)
        if type(m.bn) is nn.Identity:  # Folded: well into the work.
            raise KeyboardInterrupt

    def contents():
        return {
            (name, key): list(value.items()) if isinstance(value, dict) else value
            for name, module in model.named_modules()
            for key, value in module.__dict__.items()
        }

    before = contents()
    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(model, 8, data=interrupted, inplace=True, progress=False)
    assert contents() == before

    assert octavo.quantize(model, 8, data=X, inplace=True, progress=False) is model
    assert torch.equal(model(X), wanted)


class Frozen(dict):
    """A config as diffusers has it: what would change it raises."""

    def _refuse(self, *_, **__):
        raise Exception("You cannot change a FrozenDict.")

    update = clear = pop = popitem = setdefault = __setitem__ = __delitem__ = __ior__ = _refuse


class Watched(collections.OrderedDict):
    """A dict with rules of its own: it knows who wrote into it."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.__dict__["writes"] = self.__dict__.get("writes", 0) + 1


class Configured(nn.Module):
    """Holds containers that are nobody's but its own."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(16, 16), nn.Linear(16, 8)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.config = Frozen(width=8)
        self.proxy = types.MappingProxyType({"width": 8})
        self.watched = Watched(a=1, b=2)
        self.plain, self.list, self.set = {"a": [1]}, [1, 2], {1, 2}
        self.default = collections.defaultdict(list, a=[1])

    def forward(self, x):
        self.plain["last"] = x  # Tracing must take it out again.
        self.list.append(x)
        return self.out(torch.relu(self.fc(x)))


ROWS = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("qat", [False, True], ids=["integers", "trainee"])
@pytest.mark.parametrize("data", [None, [ROWS]], ids=["no data", "data"])
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
def test_containers_with_rules_of_their_own(inplace, data, qat):
    torch.manual_seed(0)
    model = Configured().eval()
    del model.plain["a"]
    config, watched, writes = model.config, model.watched, model.watched.writes
    made = octavo.quantize(model, 8, data=data, inplace=inplace, qat=qat, progress=False)
    assert model.config is config and dict(config) == {"width": 8}
    assert model.watched is watched and list(watched.items()) == [("a", 1), ("b", 2)]
    assert watched.writes == writes, "written to"
    assert made.config == {"width": 8} and made.proxy["width"] == 8
    assert not any(isinstance(v, torch.fx.Proxy) for v in (*model.plain.values(), *model.list))
    assert model.set == {1, 2} and model.default == {"a": [1]}
    made(ROWS)


def test_inplace_puts_back_exactly_what_was_there(monkeypatch):
    model = Configured().eval()
    containers = {key: value for key, value in vars(model).items() if isinstance(value, dict)}
    attributes = {name: dict(vars(m)) for name, m in model.named_modules()}
    contents = {key: list(value.items()) for key, value in containers.items()}
    writes = model.watched.writes

    def fail(*_, **__):
        model.register_buffer("more", torch.ones(1), persistent=False)
        raise RuntimeError("late")

    monkeypatch.setattr(octavo.api, "rewrite", fail)
    with pytest.raises(RuntimeError, match="late"):
        octavo.quantize(model, 8, inplace=True, progress=False)
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert all(vars(module)[key] is value for key, value in attributes[name].items())
    assert {key: list(value.items()) for key, value in containers.items()} == contents
    assert model.watched.writes == writes and model._non_persistent_buffers_set == {"seen"}


UNCOPYABLE = {
    "lock": threading.Lock,
    "generator": lambda: (i for i in range(3)),
    "file": lambda: open(os.devnull),
    "in a dict": lambda: {"a": [threading.RLock()]},
    "in a frozen dict": lambda: Frozen(a=threading.RLock()),
}


@pytest.mark.parametrize("make", UNCOPYABLE.values(), ids=UNCOPYABLE)
@pytest.mark.parametrize("data", [None, [ROWS]], ids=["no data", "data"])
def test_what_cannot_be_copied_is_named(make, data):
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 8))).eval()
    held = model[0].held = make()
    with pytest.raises(
        TypeError, match=r"got attribute '0\.held' of a Sequential, a .*inplace=True"
    ):
        octavo.quantize(model, 8, data=data, progress=False)
    assert model[0].held is held
    assert octavo.quantize(model, 8, data=data, inplace=True, progress=False) is model
    assert isinstance(model[0][0], QLayer) and model[0].held is held
    if hasattr(held, "close"):
        held.close()


def test_batches_that_come_once_are_enough_for_a_search():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval()

    def score(m):
        return decibels(model(ROWS).detach(), m(ROWS).detach() + 1e-3)

    for data in (iter([ROWS]), (x for x in [ROWS])):
        made = octavo.quantize(
            model, 8, data=data, evaluate=score, max_drop=100, progress=False
        )  # fmt: skip
        assert any(isinstance(m, QLayer) and m.activations == "static" for m in made.modules())


def test_plans_can_be_edited_and_given():
    from octavo.graph.capture import capture
    from octavo.numerics.scheme import Scheme
    from octavo.planning.plan import Plan, plan
    from octavo.prepare.fold import fold

    model = small()
    example = ((X[:2],), {})
    folded = copy.deepcopy(model)
    fold(folded, example)
    decided = plan(capture(folded, example), Scheme(8), "static")
    text = json.dumps(json.loads(decided.to_json()))
    made = octavo.quantize(model, Plan.from_json(text), data=X, progress=False)
    assert torch.equal(made(X), octavo.quantize(model, 8, data=X, progress=False)(X))


def test_dequantize_gives_float_layers():
    fast = octavo.quantize(small(), 8, data=X, progress=False)
    floats = octavo.dequantize(fast)
    assert type(floats.stem) is nn.Conv2d and captured_forward(floats) is None
    with torch.no_grad():
        assert decibels(floats(X), fast(X)) > 30
    with pytest.raises(ValueError, match="must hold quantized layers, got a Small without any"):
        octavo.dequantize(small())


def test_what_is_said_aloud(capsys):
    octavo.quantize(small().train(), 8, data=[(X, torch.zeros(64))])
    said = capsys.readouterr().err
    assert said.count("training mode") == 1 and said.count("item 1 of each batch left out") == 1
    octavo.quantize(small().train(), 8, progress=False)
    assert capsys.readouterr().err == ""


class Scaled(nn.Module):
    """A parametrization whose weight stands in one tensor, into which torch writes the result."""

    def forward(self, w):
        return w * 2

    def right_inverse(self, w):
        return w / 2


def test_inplace_that_fails_leaves_parametrized_weights_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrize.register_parametrization(model[2], "weight", Scaled())
    x = torch.randn(16, 6)
    state, wanted = copy.deepcopy(model.state_dict()), model(x)

    def fails(m):
        if not nn.utils.parametrize.is_parametrized(m[0]):
            raise KeyError("mine")
        m(x)

    with pytest.raises(KeyError, match="mine"):
        octavo.quantize(model, 8, data=fails, inplace=True, progress=False)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(x), wanted)
    whole = octavo.quantize(copy.deepcopy(model), 8, data=x, progress=False)
    assert torch.equal(octavo.quantize(model, 8, data=x, inplace=True, progress=False)(x), whole(x))


def test_warnings_name_the_line_of_the_user():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()
    with pytest.warns(UserWarning, match="float64 parameters") as seen:
        octavo.quantize(model, 8, progress=False)
    assert {warning.filename for warning in seen} == {__file__}
    with pytest.warns(UserWarning, match="never changed") as seen:
        octavo.quantize(model.float(), 8, data=torch.zeros(8, 6), progress=False)
    assert {warning.filename for warning in seen} == {__file__}


class Tokens(nn.Module):
    """Linear layers between floats, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(192, 64), nn.LayerNorm(64), nn.Linear(64, 64)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def tokens(samples, giant=100.0):
    """[samples, 12, 192]: one token of each sample holds a giant value."""
    x = torch.randn(samples, 12, 192, generator=torch.Generator().manual_seed(2))
    x[:, 2, 7] = giant
    return x


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_whose_rows_differ_get_ranges_of_each_row(bits):
    torch.manual_seed(0)
    model = Tokens().eval()
    x, other = tokens(64), tokens(72)[64:]
    small = octavo.quantize(model, bits, data=x, progress=False)
    found = {row.layer.name: row.layer for row in octavo.report(small).rows if row.layer.bits}
    assert found["first"].activations == "dynamic" and not found["first"].region
    assert found["first"].reason.startswith("one range has ")
    assert "ranges of each row for the inputs of" in str(octavo.report(small))
    usual = torch.arange(12) != 2
    wanted = model(other)[:, usual]
    if bits == 8:
        with_one = octavo.quantize(model, bits, data=x, activations=8, progress=False)
        gain = decibels(wanted, small(other)[:, usual]) - decibels(
            wanted, with_one(other)[:, usual]
        )
        assert gain > 10
    else:  # Such layers run alone, so their weights have groups.
        assert found["first"].granularity == "group of 64"


@pytest.mark.parametrize(
    "asked",
    [{"activations": 8}, {"bits": (8, 8)}, {"ranges": "typical"}, {"bits": {"*": (8, 8)}}],
    ids=["activations", "pair", "ranges", "pattern"],
)
def test_static_ranges_that_were_asked_for_stay(asked):
    small = octavo.quantize(Tokens().eval(), data=tokens(16), progress=False, **asked)
    rows = [row.layer for row in octavo.report(small).rows if row.layer.bits]
    assert {layer.activations for layer in rows} == {"static"} and not any(r.reason for r in rows)


def test_a_plan_with_static_ranges_keeps_them():
    model = Tokens().eval()
    decided = plan(capture(model, ((tokens(2),), {})), Scheme(8), "static")
    small = octavo.quantize(model, decided, data=tokens(16), progress=False)
    rows = [row.layer for row in octavo.report(small).rows if row.layer.bits]
    assert {layer.activations for layer in rows} == {"static"}


def test_rows_that_are_alike_keep_one_range():
    torch.manual_seed(0)
    x = torch.randn(64, 12, 768, generator=torch.Generator().manual_seed(3))
    model = nn.Sequential(nn.Linear(768, 16)).eval()
    small = octavo.quantize(model, 8, data=x, progress=False)
    assert octavo.report(small).rows[0].layer.activations == "static"
