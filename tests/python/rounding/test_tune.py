"""rounding.tune: scales and biases of all layers, learned for the model's outputs."""

import copy

import pytest
import torch
from torch import nn

import octavo
from octavo.data import Batches
from octavo.numerics.scheme import Scheme
from octavo.rounding import sample_budget
from octavo.rounding.methods.nearest import nearest_of_layer
from octavo.rounding.tune import tune

X = torch.randn(256, 12, generator=torch.Generator().manual_seed(1)).cumsum(1)


class Deep(nn.Module):
    """Several outputs, a look-up table, layers behind each other whose errors add up."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 12)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        kinds = (x[:, 0].abs().long()) % 5
        x = x + self.table(kinds)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return {"logits": self.head(x), "hidden": (x, kinds)}


def rounded(model, scheme):
    names = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    with torch.no_grad():
        return {n: nearest_of_layer(m, m.weight.detach(), scheme) for n, m in names.items()}


def error(model, codes, x):
    model = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(x)["logits"]
        for name, code in codes.items():
            module = model.get_submodule(name)
            module.weight.copy_(code.dequantize())
            if code.bias is not None:
                module.bias.copy_(code.bias)
        return float((model(x)["logits"] - wanted).square().mean())


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(3),
        Scheme(3, per_tensor=True),
        Scheme(3, "nf", group_size=16),
        Scheme(2, group_size=16, symmetric=False),
    ],
    ids=str,
)
def test_outputs_on_other_inputs_come_nearer_and_the_model_stays(scheme):
    torch.manual_seed(0)
    model = Deep().eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    codes = rounded(model, scheme)
    tuned, note = tune(model, codes, Batches([*X[:192].split(16)]), progress=False)
    assert note is None
    assert error(model, tuned, X[192:]) < 0.9 * error(model, codes, X[192:])
    for name, code in tuned.items():
        assert torch.equal(code.codes, codes[name].codes)
        if scheme.group_size:
            assert torch.equal(code.scale.bfloat16().float(), code.scale)
        assert not scheme.per_tensor or len(set(code.scale.tolist())) == 1
        assert not code.scale.requires_grad
    assert tuned["table"] is codes["table"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_what_is_worse_on_calls_held_out_is_not_kept():
    torch.manual_seed(0)
    model = Deep().eval()
    codes = rounded(model, Scheme(8))
    # The calls that only judge are of another kind than those learned from.
    calls = [X[:32] * (1.0 if i % 8 == 0 else 1e-3) for i in range(16)]
    tuned, note = tune(model, codes, Batches(calls), progress=False)
    assert note is None
    assert all(tuned[name] is codes[name] for name in codes)


class Cut(Deep):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)["logits"]


class Infinite(Deep):
    def forward(self, x):
        return super().forward(x)["logits"] / torch.zeros(())


@pytest.mark.parametrize(
    ("make", "data", "words"),
    [
        (Deep, [X[:16]], "one batch only"),
        (Cut, [*X.split(16)], "have no gradients"),
        (Infinite, [*X.split(16)], "not finite"),
    ],
)
def test_where_nothing_can_be_learned_it_is_said(make, data, words):
    model = make().eval()
    codes = rounded(model, Scheme(4))
    tuned, note = tune(model, codes, Batches(data), progress=False)
    assert words in note and all(tuned[name] is codes[name] for name in codes)


def test_the_call_says_so_and_the_weights_of_few_bits_are_what_was_learned():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(12, 12), nn.ReLU()) * 1, nn.Linear(12, 4)).eval()
    data = [*X[:192].split(16)]
    options = {"activations": "float", "effort": "best", "progress": False}
    small = octavo.quantize(model, 3, data, **options)
    plain = octavo.quantize(model, 3, data, **options | {"effort": "balanced"})
    with torch.no_grad():
        off, before = ((m(X[192:]) - model(X[192:])).square().mean() for m in (small, plain))
    assert float(off) < float(before)
    one = octavo.quantize(model, 3, data[0], **options)
    assert any("one batch only" in note for note in octavo.report(one).notes)


class Endless:
    """A sequence, so that it is read again for each pass and never as a whole."""

    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return X[:16]

    def __iter__(self):
        while True:
            yield X[:16]


def test_no_more_data_is_kept_than_memory_is_granted(monkeypatch):
    monkeypatch.setattr(sample_budget, "_MEMORY", 10 * X[:16].numel() * 4)
    calls = sample_budget.training_calls(Deep().eval(), Batches(Endless()))
    assert calls is not None and sum(call.samples for call in calls) == 160
    monkeypatch.setattr(sample_budget, "_MEMORY", 400)
    calls = sample_budget.training_calls(Deep().eval(), Batches([X[:3]]))
    assert calls is not None and [call.samples for call in calls] == [1, 1, 1]
    model = Deep().eval()
    codes = rounded(model, Scheme(4))
    tuned, note = tune(model, codes, Batches([{"x": X[:16]}]), progress=False)
    assert "too much memory" in note and all(tuned[name] is codes[name] for name in codes)
