"""mixed: sensitivities, the knapsack, averages that are spent, the search for the narrowest widths."""

import itertools

import pytest
import torch
from torch import nn

import octavo
from octavo.deciding.sensitivity import WIDTHS, allocate


class Uneven(nn.Module):
    """The first layer feeds everything; the gate of the last is nearly closed."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.side = nn.Linear(64, 64)
        self.last = nn.Linear(64, 10)
        self.frozen = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x) + 1e-3 * self.frozen(self.side(x))


X = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


def uneven() -> Uneven:
    torch.manual_seed(0)
    return Uneven().eval()


def spent(model):
    rows = [row.layer for row in octavo.report(model).rows]
    sizes = {row.name: model.get_submodule(row.name).weight.numel() for row in rows}
    return sum(sizes[r.name] * r.bits for r in rows) / sum(sizes.values())


def test_costs_fall_with_bits_and_name_the_layers_that_matter():
    model = uneven()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = octavo.sensitivity(model, X, progress=False)
    assert found.sizes == {"first": 2048, "last": 640, "frozen": 640, "side": 4096}
    for costs in found.costs.values():
        assert sorted(costs) == list(WIDTHS)
        assert all(costs[a] > costs[b] for a, b in itertools.pairwise(WIDTHS))
    assert found.costs["side"][2] < 1e-4 * found.costs["first"][2]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert "first" in str(found) and "average" in found.front()


@pytest.mark.filterwarnings("ignore:quantize. float64 parameters are computed in float32")
def test_an_average_is_spent_in_place_on_weights_of_any_strides():
    model, wide = uneven().double(), uneven().double()
    for name in ("first", "side", "last"):
        weight = wide.get_submodule(name).weight
        weight.data = torch.cat([weight.data, weight.data], 1)[:, : weight.shape[1]]
    for each in (model, wide):
        octavo.quantize(each, 4.5, data=X.double(), inplace=True, progress=False)
    with torch.no_grad():
        assert torch.equal(model(X), wide(X))


def test_without_data_the_weights_errors_count():
    found = octavo.sensitivity(uneven(), progress=False)
    assert found.costs["side"][2] > 0.5 * found.costs["first"][2]


def test_knapsack_is_optimal():
    generator = torch.Generator().manual_seed(0)
    names = "abcd"
    costs = {
        n: {b: float(c) for b, c in zip(WIDTHS, torch.rand(6, generator=generator), strict=True)}
        for n in names
    }
    sizes = {"a": 100, "b": 300, "c": 70, "d": 530}
    for average in (2.0, 2.7, 4.0, 6.1, 8.0):
        found = allocate(costs, sizes, average)
        assert sum(sizes[n] * found[n] for n in names) <= average * 1000
        best = min(
            sum(costs[n][b] for n, b in zip(names, widths, strict=True))
            for widths in itertools.product(WIDTHS, repeat=4)
            if sum(sizes[n] * b for n, b in zip(names, widths, strict=True)) <= average * 1000
        )
        assert sum(costs[n][found[n]] for n in names) == pytest.approx(best)


@pytest.mark.parametrize("average", [2.0, 3.3, 4.0, 4.5, 8.0])
def test_an_average_is_spent_and_not_exceeded(average):
    small = octavo.quantize(uneven(), average, X, progress=False)
    assert average - 1.5 <= spent(small) <= average
    assert any(n.startswith(f"average of {average} bits") for n in octavo.report(small).notes)


@pytest.mark.parametrize("with_data", [False, True])
def test_an_average_beside_layers_without_an_integer_form(with_data):
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 10)).eval()
    x = torch.randn(16, 64) if with_data else None
    small = octavo.quantize(model, 4.5, data=x, progress=False)
    bits = {row.layer.name: row.layer.bits for row in octavo.report(small).rows}
    assert bits["1"] == 0
    assert 64 * 32 * bits["0"] + 32 * 10 * bits["2"] <= 4.5 * (64 * 32 + 32 * 10)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.middle, self.head = (
            nn.Embedding(50, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 50),
        )
        self.head.weight = self.table.weight

    def forward(self, index):
        return self.head(self.middle(self.table(index)).relu())


@pytest.mark.parametrize("with_data", [False, True])
def test_layers_of_one_weight_have_one_width(with_data):
    model, x = Tied().eval(), torch.randint(0, 50, (8, 5))
    found = octavo.sensitivity(model, x if with_data else None, progress=False)
    assert found.tied in ({"head": "table"}, {"table": "head"})
    for average in (2.5, 3.3, 4.5, 6.2):
        widths = found.allocate(average)
        assert widths["table"] == widths["head"]
    small = octavo.quantize(model, 8, x, evaluate=lambda _: 1.0, max_drop=0.1, progress=False)
    ends = octavo.quantize(model, {"*": 4, "@last": 8}, x, progress=False)
    for made, bits in ((small, 2), (ends, 8)):
        rows = {row.layer.name: row.layer.bits for row in octavo.report(made).rows}
        assert rows["table"] == rows["head"] == bits


def test_an_average_beats_the_same_width_everywhere():
    model = uneven()
    with torch.no_grad():
        wanted = model(X)
        errors = [
            float((octavo.quantize(model, b, X, effort="fast", progress=False)(X) - wanted).norm())
            for b in (4.0, 4)
        ]
    assert errors[0] < 0.7 * errors[1]


def test_an_average_without_data_with_exclusions_and_activations():
    small = octavo.quantize(uneven(), 4.0, exclude="last", progress=False)
    assert type(small.last) is nn.Linear
    small = octavo.quantize(uneven(), (4.0, 6), X, progress=False)
    assert {row.layer.activations for row in octavo.report(small).rows} == {"static"}


def score_of(model):
    def score(candidate):
        with torch.no_grad():
            wanted = model(X)
            off = (candidate(X) - wanted).square().sum() / wanted.square().sum()
        return -100 * float(off.sqrt())

    return score


def test_the_narrowest_average_within_the_drop():
    model = uneven()
    score = score_of(model)
    loose = octavo.quantize(model, 8, X, evaluate=score, max_drop=15, progress=False)
    tight = octavo.quantize(model, 8, X, evaluate=score, max_drop=3, progress=False)
    assert score(loose) >= -15 and score(tight) >= -3
    assert spent(loose) < spent(tight) < 8
    (note,) = [n for n in octavo.report(tight).notes if "scores" in n]
    assert "(float 0, asked -3)" in note.replace("-0", "0") and "tried" in note


def test_the_best_model_is_returned_where_none_is_good_enough():
    model = uneven()
    made = octavo.quantize(model, 3, X, evaluate=score_of(model), max_drop=0, progress=False)
    assert any("no average scored as asked" in n for n in octavo.report(made).notes)
    assert spent(made) <= 3


def test_a_search_in_place_returns_the_model_itself():
    model = uneven()
    other = uneven()
    made = octavo.quantize(
        model, 8, X, evaluate=score_of(other), max_drop=5, inplace=True, progress=False
    )
    assert made is model


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"evaluate": len}, ValueError, "max_drop must be a number beside the other, got None"),
        ({"max_drop": 1}, ValueError, "evaluate must be a callable .* got None"),
        ({"evaluate": 3, "max_drop": 1}, TypeError, "evaluate must be a callable .* got 3"),
        ({"evaluate": len, "max_drop": True}, TypeError, "max_drop must be a number, got True"),
        ({"evaluate": len, "max_drop": -1}, ValueError, "at least 0 and finite, got -1"),
        ({"evaluate": len, "max_drop": 1, "bits": 4.5}, ValueError, "the largest width, got 4.5"),
        ({"bits": {"*": 4.5}}, ValueError, "must be an integer from 2 to 8, got the average 4.5"),
        ({"bits": 8.5}, ValueError, "must lie in 2..8, got 8.5"),
    ],
)
def test_messages(options, error, text):
    with pytest.raises(error, match=text):
        octavo.quantize(uneven(), progress=False, **options)
