"""rewrite and dequantize: copies, shared modules, roots, hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.graph.keys import SiteKey
from octavo.lowering.rewrite import dequantize, install, rewrite
from octavo.nn import QConv2d, QLayer, QLinear
from octavo.nn.forwards import restore_forward
from octavo.nn.surgery import copy_model
from octavo.numerics.scheme import QParams, Scheme
from octavo.planning.plan import Plan, SitePlan
from octavo.rounding import nearest
from octavo.runtime.captured_forward import captured_forward
from small_models import Net, captured, error_of, layers, trained


def by_hand(
    model: nn.Module, inplace: bool = False, activations: str = "dynamic", **params: QParams
) -> nn.Module:
    """Every Linear and Conv2d of ``model`` at 8 bits."""
    sites, integers = [], {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            sites.append(SitePlan(name, type(module).__name__, Scheme(8), activations))  # type: ignore[arg-type]
            integers[name] = nearest(module.weight, module.bias, Scheme(8))
    found = {SiteKey(name): value for name, value in params.items()}
    return rewrite(model, Plan(tuple(sites)), found, integers, inplace)


class Nest(nn.Module):
    """Modules in places that are no registered children too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.many = nn.ModuleDict({"x/y": nn.Linear(8, 8)})
        self.in_a_list = [self.many["x/y"]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.in_a_list[0](self.b(self.a(x)))


def test_every_reference_follows() -> None:
    model, x = Nest(), torch.randn(3, 8)
    small = by_hand(model)
    assert isinstance(small.a, QLinear) and small.b is small.a
    assert small.in_a_list[0] is small.many["x/y"] and isinstance(small.in_a_list[0], QLinear)
    assert type(model.a) is nn.Linear and not any(isinstance(m, QLayer) for m in model.modules())
    assert error_of(small(x), model(x)) < 1e-3


@pytest.mark.parametrize("inplace", [False, True])
def test_a_root_that_is_the_layer(inplace: bool) -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    y = model(x)
    small = by_hand(model, inplace)
    assert type(small) is QConv2d and error_of(small(x), y) < 1e-3
    assert (small is model) == inplace
    back = dequantize(small, inplace=inplace)
    assert type(back) is nn.Conv2d and (back is small) == inplace


def test_inplace_changes_the_model_itself() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 8)
    y, seen = model(x), []
    handle = model[2].register_forward_hook(lambda m, args, out: seen.append(1))
    assert by_hand(model, inplace=True) is model and type(model[2]) is QLinear
    assert error_of(model(x), y) < 1e-3 and seen == [1]
    handle.remove()
    model(x)
    assert seen == [1], "handles of hooks still work"


def test_hooks_stay_the_same_objects() -> None:
    """A collector that a hook fills is not cloned; the copy has hook tables of its own."""
    model, x, collector = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(3, 8), []

    class Hook:
        def __init__(self) -> None:
            self.seen = collector

        def __call__(self, module: nn.Module, args: Any, out: Any) -> None:
            self.seen.append(type(module))

    hook = Hook()
    handle = model[0].register_forward_hook(hook)
    model[1].register_forward_hook(hook)
    small = by_hand(model)
    small(x)
    assert collector == [QLinear, nn.ReLU]
    handle.remove()
    small(x)
    assert collector == [QLinear, nn.ReLU] * 2, (
        "removing a hook from the model leaves the copy alone"
    )
    assert next(iter(small[0]._forward_hooks.values())) is hook


def test_tensors_that_are_no_leaves_become_clones() -> None:
    """A plain deepcopy fails on these."""
    model = nn.Sequential(nn.Linear(4, 4))
    model.cache = model[0].weight * 2
    model.nested = {"x": [model[0].weight.sum(), (model[0].bias + 1,)]}
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    twin = copy_model(model)
    assert (
        torch.equal(twin.cache, model.cache) and twin.cache.is_leaf and not twin.cache.requires_grad
    )
    assert torch.equal(twin.nested["x"][1][0], model.nested["x"][1][0])
    assert twin.cache.data_ptr() != model.cache.data_ptr()


def test_missing_integers_and_ranges_are_errors() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    site = SitePlan("0", "Linear", Scheme(8), "static")
    with pytest.raises(ValueError, match=r"layer '0': expected integers for it, got none"):
        rewrite(model, Plan((site,)), {}, {})
    with pytest.raises(ValueError, match=r"layer '0': expected the range of its input, got none"):
        by_hand(model, activations="static")
    norm = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(ValueError, match="got LayerNorm has no integer form"):
        rewrite(norm, Plan((SitePlan("0", "LayerNorm", Scheme(8)),)), {}, {})
    assert type(model[0]) is nn.Linear


def test_static_sites_outside_flows() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(30, 8)
    small = by_hand(model, activations="static", **{"0": QParams(2.0**-5, 128)})
    assert small[0].input_params == QParams(2.0**-5, 128)
    assert error_of(small(x), model(x)) < 1e-3


def test_dequantize_gives_float_modules() -> None:
    net = trained(Net())
    data = [torch.randn(4, 3, 32, 32)]
    small = captured(net, data)
    back = dequantize(small)
    assert captured_forward(small) is not None and layers(small)
    assert captured_forward(back) is None and not layers(back)
    assert type(back.fc) is nn.Linear and type(back.layer1[0].conv1) is nn.Conv2d
    assert torch.equal(back.fc.weight, small.fc.weight)
    assert error_of(back(data[0]), net(data[0])) < 1e-3
    back.train()(data[0]).sum().backward()
    assert back.fc.weight.grad is not None


def test_a_replaced_forward_is_not_overwritten() -> None:
    net = trained(Net())
    data = [torch.randn(4, 3, 32, 32)]
    small = captured(net, data)
    forward = captured_forward(small)
    assert forward is not None
    plain = trained(Net())
    plain.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match="expected its class's forward, got one replaced on the instance"
    ):
        install(plain, forward.flow, forward.items)


class Queried(nn.Module):
    """One layer for data and for a constant with a far larger range."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.query = nn.Parameter(torch.randn(1, 8, 1, 1) * 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.layer(self.query)


class Sized(nn.Module):
    """Five samples take another way, on which the layers get larger values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 5:
            x = x * 6
        return self.b(torch.relu(self.a(x)))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.layer.register_forward_pre_hook(lambda _module, args: (args[0] + 4,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


@pytest.mark.parametrize("make", [Queried, Sized, Shifted])
def test_a_layers_own_forward_takes_all_of_its_calls(make: type[nn.Module]) -> None:
    model = make().eval()
    data = [torch.randn(n, 8, 4, 4) for n in (32, 5, 5, 5, 5)]
    quantized = octavo.quantize(model, 8, data=data, progress=False)
    x, few = torch.randn(7, 8, 4, 4), torch.randn(5, 8, 4, 4)
    assert captured_forward(quantized) is not None
    assert error_of(quantized(x), model(x)) < 4e-4
    assert error_of(quantized(few), model(few)) < 4e-4
    restore_forward(quantized)
    assert error_of(quantized(x), model(x)) < 36e-4  # With the range of larger values, too.
    assert error_of(quantized(few), model(few)) < 4e-4
