"""Captured modules: one call, step by step, copies, calls that do not fit, compiled."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import octavo
from octavo.nn import QLayer
from octavo.runtime.captured_forward import Region, captured_forward
from small_models import Net, captured, error_of, layers, trained


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Net in one region. Tests that change it work on copies."""
    torch.manual_seed(0)
    net = trained(Net())
    data = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    small = captured(net, data)
    small.float_model = [net]  # In a list, so that it is no submodule.
    return small


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 32, 32)


def test_is_one_region(model: nn.Module, x: Tensor) -> None:
    forward = captured_forward(model)
    assert forward is not None and [type(item) for item in forward.items] == [Region]
    assert error_of(model(x), model.float_model[0](x)) < 1e-3
    assert type(model) is Net and sorted(layers(model)) == [
        "fc",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer1.1.conv1",
        "layer1.1.conv2",
        "stem.0",
    ]


def test_copies(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    twin = copy.deepcopy(model)
    assert captured_forward(twin).owner() is twin  # type: ignore[union-attr]
    assert torch.equal(twin(x), y)
    twin.load_state_dict({k: v * 0 if "bias" in k else v for k, v in twin.state_dict().items()})
    assert not torch.equal(twin(x), y) and torch.equal(model(x), y), "copies are independent"
    for protocol in range(2, 6):
        again = pickle.loads(pickle.dumps(model, protocol))
        assert captured_forward(again).owner() is again  # type: ignore[union-attr]
        assert torch.equal(again(x), y)
    inside = copy.deepcopy(nn.Sequential(nn.Identity(), model))
    assert torch.equal(inside(x), y)


def test_the_owner_is_not_kept_alive(model: nn.Module) -> None:
    forward = captured_forward(copy.deepcopy(model))
    with pytest.raises(RuntimeError, match="got one that is gone"):
        forward.owner()  # type: ignore[union-attr]


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a step of the flow: an identity, which a folded BatchNorm leaves, is none."""
    return not isinstance(module, nn.Identity) and not any(True for _ in module.children())


def test_a_hook_on_an_identity_makes_the_forward_of_the_class_run(
    model: nn.Module, x: Tensor
) -> None:
    model, seen = copy.deepcopy(model), []
    identity = next(m for m in model.modules() if isinstance(m, nn.Identity))
    identity.register_forward_hook(lambda m, args, out: seen.append(out))
    assert error_of(model(x), model.float_model[0](x)) < 1e-3 and len(seen) == 1


def test_hooks_on_leaves_see_floats_and_change_nothing(model: nn.Module, x: Tensor) -> None:
    y, seen = model(x), {}
    handles = [
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.setdefault(name, []).append(out)
        )
        for name, module in model.named_modules()
        if _is_layer(module)
    ]
    try:
        assert torch.equal(model(x), y)
    finally:
        for handle in handles:
            handle.remove()
    expected = [n for n, m in model.named_modules() if _is_layer(m)]
    assert sorted(seen) == sorted(expected)
    assert len(seen["layer1.0.relu"]) == 2
    assert all(out.dtype is torch.float32 for outs in seen.values() for out in outs)
    assert float(seen["stem.0"][0].min()) < 0 <= float(seen["stem.2"][0].min())
    reference: dict[str, Tensor] = {}
    net = model.float_model[0]
    for name in ("stem.2", "pool", "fc"):
        net.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: reference.__setitem__(name, out.clone())
        )
    net(x)
    for name, out in reference.items():
        assert error_of(seen[name][0], out) < 2e-3, name


def test_hooks_on_containers_fire(model: nn.Module, x: Tensor) -> None:
    seen = []
    handle = model.layer1[0].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    try:
        assert error_of(model(x), model.float_model[0](x)) < 2e-3
    finally:
        handle.remove()
    assert len(seen) == 1 and seen[0][0].shape == seen[0][1].shape == (3, 8, 8, 8)


@pytest.mark.parametrize(
    "name", ["stem.0", "stem.1", "pool", "layer1.0.relu", "layer1.1.conv2", "fc"]
)
def test_changed_outputs_are_honoured(model: nn.Module, x: Tensor, name: str) -> None:
    y, net = model(x), copy.deepcopy(model.float_model[0])
    for target in (model, net):
        target.get_submodule(name).register_forward_hook(lambda m, args, out: out * 0.5)
    changed = model(x)
    assert error_of(changed, net(x)) < 5e-3
    assert not torch.equal(changed, y)
    model.get_submodule(name)._forward_hooks.clear()
    assert torch.equal(model(x), y)


def test_changed_inputs_are_honoured(model: nn.Module, x: Tensor) -> None:
    y, net = model(x), copy.deepcopy(model.float_model[0])
    for target in (model, net):
        target.fc.register_forward_pre_hook(lambda m, args: (args[0] * 0.25,))
    assert error_of(model(x), net(x)) < 5e-3
    model.fc._forward_pre_hooks.clear()

    def in_place(module: nn.Module, args: Any) -> None:
        args[0].mul_(0.25)

    handle = model.fc.register_forward_pre_hook(in_place)
    assert error_of(model(x), net(x)) < 5e-3
    handle.remove()
    assert torch.equal(model(x), y)


def test_hooks_on_everything_at_once(model: nn.Module, x: Tensor) -> None:
    y, count = model(x), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, args, out: count.append(type(m))
    )
    try:
        assert torch.equal(model(x), y)
    finally:
        handle.remove()
    assert len(count) > 10 and count[-1] is Net


def test_calls_that_do_not_fit_run_the_class(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"layer 'stem\.0' \(QConv2d\).*\[N, 3, H, W\].*got \[2, 4, 32, 32\]"
    ):
        model(torch.randn(2, 4, 32, 32))
    with pytest.raises(TypeError, match=r"layer 'stem\.0'.*torch.int64.*\.float\(\)"):
        model(torch.ones(2, 3, 32, 32).long())
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
        model()
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        model(x, y=1)
    assert torch.equal(model(x=x), model(x))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QLayer) or super().is_leaf_module(m, module_qualified_name)


def test_a_proxy_sees_the_class(model: nn.Module) -> None:
    graph = _Tracer().trace(copy.deepcopy(model))
    assert {n.target for n in graph.nodes if n.op == "call_module"} >= {
        "stem.0",
        "layer1.1.conv2",
        "fc",
    }


def test_sizes_types_and_layouts(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    for i in range(3):
        assert torch.equal(model(x[i : i + 1])[0], y[i])
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last)), y)
    assert model(torch.empty(0, 3, 32, 32)).shape == (0, 5)
    assert model(torch.randn(2, 3, 47, 33)).shape == (2, 5)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert model(x.to(dtype)).dtype is dtype
        assert torch.equal(model(x.to(dtype)), model(x.to(dtype).float()).to(dtype))
    assert torch.equal(copy.deepcopy(model).half()(x), y)
    again = copy.deepcopy(model).train()  # Dropout drops, as in any model in training mode.
    assert not torch.equal(again(x), y)
    again.drop.p = 0.0
    assert error_of(again(x), y) < 1e-3


def test_state_and_instruction_sets(model: nn.Module, x: Tensor) -> None:
    model, y = copy.deepcopy(model), model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    changed = {k: torch.zeros_like(v) if "packed" in k else v for k, v in state.items()}
    model.load_state_dict(changed)
    assert not torch.equal(model(x), y)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model(x), y)
    before = octavo.isa()
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            assert torch.equal(model(x), y), isa
    finally:
        octavo.set_isa(before)


def test_a_replaced_child_is_called(model: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(model)
    model.fc = model.float_model[0].fc
    assert error_of(model(x), model.float_model[0](x)) < 1e-3
    model.layer1[0].conv1 = model.layer1[0].conv1.to_float()
    assert error_of(model(x), model.float_model[0](x)) < 1e-3


def test_signature_and_repr(model: nn.Module) -> None:
    assert list(inspect.signature(model.forward).parameters) == ["x"]
    assert repr(captured_forward(model)) == "CapturedForward(path='', regions=1, items=1)"


def test_gradients_are_refused(model: nn.Module, x: Tensor) -> None:
    y = model(x.requires_grad_())
    with pytest.raises(RuntimeError, match="inference only"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("fresh", [False, True], ids=["called before", "just copied"])
def test_compiles_without_breaks(model: nn.Module, x: Tensor, dynamic: bool, fresh: bool) -> None:
    y = model(x)
    target = copy.deepcopy(model) if fresh else model
    torch._dynamo.reset()
    compiled = torch.compile(target, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), y)
        assert torch.equal(compiled(torch.cat([x, x]))[3:], y)
    graded = torch.compile(target, fullgraph=True, backend="aot_eager")(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="inference only"):
        graded.sum().backward()


def test_compiled_layers(x: Tensor) -> None:
    net = trained(Net())
    small = captured(net, None)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(small, fullgraph=True, backend="aot_eager")(x), small(x))


def test_hooks_where_children_work_in_place() -> None:
    """An activation and a dropout in place share a step: neither may change what the step reads."""
    head = nn.Sequential(
        nn.Linear(8, 16), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True)
    )
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)).eval()
    net = nn.Sequential(net, nn.Flatten(), head, nn.Linear(16, 4)).eval()
    data = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    small = captured(net, data)
    y = small(data[0])
    leaves = [m for m in small.modules() if not any(True for _ in m.children())]
    for module in leaves:
        module.register_forward_hook(lambda m, args, out: None)
    assert torch.equal(small(data[0]), y)


class Mixed(nn.Module):
    """Float steps between regions, a value used twice, a tuple and a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        a = torch.relu(self.a(x))
        b = self.norm(a * scale) + a
        c = torch.relu(self.b(b))
        return {"maps": (a, c), "logits": self.head(c.mean((2, 3)))}


def test_float_steps_between_regions() -> None:
    net = Mixed().eval()
    data = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    small = captured(net, data)
    forward = captured_forward(small)
    assert forward is not None and sum(isinstance(i, Region) for i in forward.items) >= 2
    x = data[0]
    expected, result = net(x), small(x)
    assert set(result) == {"maps", "logits"} and type(result["maps"]) is tuple
    for y, z in zip(
        (*expected["maps"], expected["logits"]), (*result["maps"], result["logits"]), strict=True
    ):
        assert error_of(z, y) < 1e-3
    other = small(x, scale=2.0)  # Not what was captured: the class runs over the layers.
    assert error_of(other["logits"], net(x, scale=2.0)["logits"]) < 1e-2
    assert error_of(small(x, 1.0)["logits"], expected["logits"]) < 1e-3
