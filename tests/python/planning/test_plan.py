"""Plans by value: where regions lie, what is fused, which values share parameters, JSON."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.graph.capture import capture
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import Plan, RegionPlan, plan

S = Scheme()


def planned(model: nn.Module, *args: Tensor, schemes: Any = S, bits: int = 8) -> Plan:
    found = plan(capture(model.eval(), (args, {})), schemes, "static", bits)
    assert Plan.from_json(found.to_json()) == found
    return found


def regions(found: Plan) -> list[RegionPlan]:
    return [region for flow in found.flows for region in flow.regions]


def form(region: RegionPlan) -> list[str]:
    return [f"{s.output} = {s.kind}({', '.join(s.inputs)})" for s in region.steps]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        out = self.drop(self.conv2(x))
        out += x
        out = F.relu6(out)
        out = F.max_pool2d(self.down(out) + out, 2)
        return self.drop(self.fc(out.mean((2, 3))))


def test_residual_network_is_one_region() -> None:
    found = planned(Block(), torch.randn(2, 8, 6, 6))
    (region,) = regions(found)
    assert form(region) == [
        "relu = conv(x)",
        "relu6 = conv(relu, relu)",
        "add = conv(relu6, relu6)",
        "max_pool2d = max_pool(add)",
        "mean = adaptive_avg_pool(max_pool2d)",
        "drop_1 = linear_f32(mean)",
    ]
    assert [part.output for part in region.steps[1].fused] == ["conv2", "drop", "add_", "relu6"]
    assert (region.steps[1].params["lo"], region.steps[1].params["hi"]) == (0.0, 6.0)
    assert region.params_of == {
        "x": "x",
        "relu": "relu",
        "relu6": "relu6",
        "add": "add",
        "max_pool2d": "add",
        "mean": "mean",
    }
    assert (region.inputs, region.outputs) == (("x",), ("drop_1",))
    assert region.layouts == {"x": "image"}
    assert {site.region for site in found.sites} == {"#0"}
    assert found.flows[0].items == (region,)


class Shortcut(nn.Module):
    """The shortcut of CIFAR's ResNets: the sum's later operand is no layer, its earlier one is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(x)
        y = self.a(x)
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        return self.out(F.relu(y))


def test_a_layer_waits_for_the_other_operand() -> None:
    (region,) = regions(planned(Shortcut(), torch.randn(2, 3, 6, 6)))
    assert form(region) == [
        "b = conv(x)",
        "slice_3 = slice(b)",
        "pad = gather_channels(slice_3)",
        "relu = conv(b, pad)",
        "out = conv_f32(relu)",
    ]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.a, self.b, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = F.max_pool2d(self.b(x), 3, 1, 1)
        return self.out(torch.cat([x, F.silu(self.a(x)), pooled], 1))


def test_sole_readers_share_the_range_of_a_concat() -> None:
    (region,) = regions(planned(Branches(), torch.randn(2, 3, 6, 6)))
    assert region.params_of["max_pool2d"] == region.params_of["b"] == "cat"
    assert region.params_of["silu"] == "cat" and region.params_of["a"] == "a"
    assert region.params_of["stem"] == "stem"


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + torch.softmax(self.q(y) @ self.k(y).transpose(1, 2), -1) @ y
        return x + self.down(F.gelu(self.up(self.norm(x))))


def test_transformers_keep_their_residual_stream() -> None:
    found = planned(Transformer(), torch.randn(2, 3, 8))
    both, mlp = regions(found)
    assert form(both) == ["q = linear_f32(norm)", "k = linear_f32(norm)"]
    assert form(mlp) == ["up = linear(norm_1)", "gelu = unary(up)", "down = linear_f32(gelu)"]
    assert mlp.layouts == {"norm_1": "rows"}


def test_excluded_layers_cut_regions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    schemes = {"0": S, "3": Scheme(4)}
    found = planned(model, torch.randn(1, 3, 4, 4), schemes=schemes)
    first, second = regions(found)
    assert form(first) == ["_1 = conv_f32(input)"] and form(second) == ["_3 = conv_f32(_2)"]
    sites = {site.name: site for site in found.sites}
    assert (sites["2"].scheme, sites["2"].reason, sites["2"].activations) == (
        None,
        "excluded",
        "float",
    )
    assert sites["3"].scheme == Scheme(4) and sites["3"].region == "#1"
    assert [type(item).__name__ for item in found.flows[0].items] == [
        "RegionPlan",
        "Step",
        "RegionPlan",
    ]


class AroundTheBlock(nn.Module):
    """One operand of the sum comes through a float step: a single region would wait for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return F.relu(self.b(x) + self.norm(x))


def test_no_region_depends_on_itself() -> None:
    found = planned(AroundTheBlock(), torch.randn(1, 4, 4, 4))
    made: set[str] = {"x"}
    for item in found.flows[0].items:
        reads = item.inputs
        assert made.issuperset(reads), f"{reads} before they exist"
        made.update(item.outputs if isinstance(item, RegionPlan) else [item.output])
    assert "relu" in made


def test_ends_of_regions_are_float() -> None:
    """A sigmoid at the end works on the float result of the last layer, not on 256 codes."""
    found = planned(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()), torch.randn(1, 3, 4, 4))
    (region,) = regions(found)
    assert form(region) == ["_0 = conv_f32(input)"]
    assert found.flows[0].items[1].module == "1"


def test_values_for_both_kinds_of_reader_are_stored_twice() -> None:
    (region,) = regions(planned(Block(), torch.randn(2, 8, 6, 6), bits=4))
    assert form(region)[:5] == [
        "relu = conv(x)",
        "relu@4 = unary(relu)",
        "relu6 = conv(relu@4, relu)",
        "relu6@4 = unary(relu6)",
        "add = conv(relu6@4, relu6)",
    ]
    assert region.bits == {"relu@4": 4, "relu6@4": 4, "mean": 4}
    assert region.params_of["relu@4"] == "relu@4"


@pytest.mark.parametrize("activations", ["dynamic", "float"])
def test_no_regions_without_static_activations(activations: Any) -> None:
    found = plan(capture(Block().eval(), ((torch.randn(1, 8, 6, 6),), {})), S, activations)
    assert not found.flows
    assert {site.activations for site in found.sites} == {activations}


def test_text() -> None:
    text = str(planned(Block(), torch.randn(2, 8, 6, 6)))
    assert "conv1  Conv2d  8 bits linear per channel, activations static 8 bits  region #0" in text
    assert "max_pool2d = max_pool(add)" in text and "range of add" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "expected JSON text"), ("[]", "got 'list'"), ('{"format": "octavo.plan 1"}', "'sites'")],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)
