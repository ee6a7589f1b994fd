"""What every quantized layer promises: copies, moves, state, hooks, attributes."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo import ops
from small_models import RANGE, quantized

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(20, 7), (3, 20)),
    "linear without bias": (lambda: nn.Linear(20, 7, bias=False), (2, 3, 20)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 19)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 9, 9)),
}
RANGES = {"dynamic": None, "static": RANGE}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


@pytest.fixture(params=RANGES)
def params(request: pytest.FixtureRequest) -> Any:
    return RANGES[request.param]


def test_copies_give_the_same_bits(case: Any, params: Any) -> None:
    module, x = case
    layer = quantized(module, params)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    for protocol in range(2, 6):
        assert torch.equal(pickle.loads(pickle.dumps(layer, protocol))(x), y)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), y)
    layer.share_memory()
    assert layer.panel.is_shared() and torch.equal(layer(x), y)


def test_state_dict_holds_canonical_bits(case: Any, params: Any) -> None:
    module, _ = case
    state = quantized(module, params).state_dict()
    expected = {"weight_packed", "weight_scale"} | ({"bias"} if module.bias is not None else set())
    if params is not None:
        expected |= {"input_scale", "input_zero_point"}
    assert set(state) == expected
    assert state["weight_packed"].dtype is torch.uint8
    assert state["weight_packed"].shape[0] == module.weight.shape[0]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("bits", [8, 5, 3])
def test_load_state_dict(case: Any, params: Any, assign: bool, bits: int) -> None:
    module, x = case
    layer, other = quantized(module, params, bits), quantized(copy.deepcopy(module), params, bits)
    nn.init.normal_(module.weight)
    source = quantized(module, params, bits)
    y = source(x)
    assert not torch.equal(layer(x), y)
    assert (
        str(other.load_state_dict(source.state_dict(), assign=assign))
        == "<All keys matched successfully>"
    )
    assert torch.equal(other(x), y)
    assert not any(p.requires_grad for p in other.parameters())
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_packed"):
        other.load_state_dict(
            {k: v for k, v in source.state_dict().items() if k != "weight_packed"}
        )


def test_a_float_state_dict_is_refused_with_a_remedy() -> None:
    module = nn.Linear(20, 7)
    layer = quantized(module)
    x = torch.randn(3, 20)
    y = layer(x)
    with pytest.raises(RuntimeError, match=r"net\.0.*got a float weight.*quantize"):
        layer.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match=r"weight_packed: expected uint8 of shape \(7, 20\)"):
        layer.load_state_dict(quantized(nn.Linear(19, 7)).state_dict())
    bad = layer.state_dict()
    bad["weight_scale"] = bad["weight_scale"] * float("nan")
    with pytest.raises(RuntimeError, match="weight_scale: expected finite normal"):
        layer.load_state_dict(bad)
    assert torch.equal(layer(x), y), "a refused state changes nothing"


def test_types_of_floats_do_not_touch_the_codes(case: Any, params: Any) -> None:
    module, x = case
    layer = quantized(module, params)
    y, state = layer(x), {k: v.clone() for k, v in layer.state_dict().items()}
    for cast in (layer.half, layer.bfloat16, layer.double, lambda: layer.to(torch.float16)):
        cast()
        assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
        assert torch.equal(layer(x), y)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert layer(x.to(dtype)).dtype is dtype
        assert torch.equal(layer(x.to(dtype)), layer(x.to(dtype).float()).to(dtype))


def test_other_devices_are_refused() -> None:
    layer = quantized(nn.Linear(20, 7))
    with pytest.raises(RuntimeError, match=r"layer 'net\.0'.*CPU only.*octavo.dequantize"):
        layer.to("meta")
    with pytest.raises(RuntimeError, match="CPU only"):
        nn.Sequential(layer).cuda()


def test_weight_reads_and_refuses() -> None:
    module = nn.Linear(20, 7)
    layer = quantized(module)
    assert torch.equal(layer.weight, layer.codes().float() * layer.weight_scale[:, None])
    assert torch.allclose(layer.weight, module.weight, atol=float(layer.weight_scale.max()) / 1.9)
    with pytest.raises(AttributeError, match=r"weight: expected to be read only.*codes\(\)"):
        layer.weight = torch.ones(7, 20)
    with pytest.raises(AttributeError, match="read only"):
        del layer.weight
    with pytest.raises(AttributeError, match="read only"):
        layer.weight = nn.Parameter(torch.ones(7, 20))


def test_attributes_and_repr_stay(case: Any, params: Any) -> None:
    module, _ = case
    module.note = "mine"
    layer = quantized(module, params, 6)
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in ("training",):
            assert getattr(layer, name) == value
    text = repr(layer)
    assert "bits=6" in text and ("static" in text) == (params is not None)
    assert next(layer.parameters()).dtype is torch.float32


def test_hooks_move_along() -> None:
    module, seen = nn.Linear(20, 7), []
    handle = module.register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    layer = quantized(module)
    layer(torch.randn(1, 20))
    assert seen == ["QLinear"]
    handle.remove()
    layer(torch.randn(1, 20))
    assert seen == ["QLinear"]


def test_float_again(case: Any, params: Any) -> None:
    module, x = case
    layer = quantized(module, params)
    back = layer.to_float()
    assert type(back) is type(module) and torch.equal(back.weight, layer.weight)
    assert repr(back) == repr(module) and back(x).shape == module(x).shape


def test_instruction_sets_agree(case: Any, params: Any) -> None:
    module, x = case
    layer = quantized(module, params)
    y, before = layer(x), octavo.isa()
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            assert torch.equal(layer(x), y), isa
            assert ops.panel_is_current(layer.panel)
            assert torch.equal(quantized(module, params)(x), y)
    finally:
        octavo.set_isa(before)


def test_everything_works_in_inference_mode(case: Any, params: Any) -> None:
    module, x = case
    with torch.inference_mode():
        layer = quantized(module, params)
        y = layer(x)
    assert not any(t.is_inference() for t in (*layer.parameters(), layer.panel))
    layer.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), y)


def test_no_torn_reads_while_states_are_loaded() -> None:
    """A forward during load_state_dict sees the old weight or the new one."""
    module = nn.Linear(64, 64)
    layer, x = quantized(module, RANGE), torch.randn(4, 64)
    states, results = [], []
    for scale in (1.0, -3.0):
        with torch.no_grad():
            module.weight.mul_(scale)
            module.bias.mul_(scale)
        twin = quantized(module, RANGE)
        states.append(twin.state_dict())
        results.append(twin(x))
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            for state in states:
                layer.load_state_dict(state)

    layer.load_state_dict(states[0])
    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(300):
            y = layer(x)
            assert any(torch.equal(y, r) for r in results)
    finally:
        stop.set()
        thread.join()


BAD_INPUTS = [
    ("linear", lambda x: torch.randn(3, 19), ValueError, r"layer 'net\.0'.*\[\.\.\., 20\], got \[3, 19\]"),
    ("linear", lambda x: torch.tensor(1.0), ValueError, r"\[\.\.\., 20\], got \[\]"),
    ("linear", lambda x: x.long(), TypeError, r"torch.int64.*\.float\(\)"),
    ("linear", lambda x: x.bool(), TypeError, "torch.bool"),
    ("linear", lambda x: x * 1j, TypeError, "torch.complex64"),
    ("linear", lambda x: x.numpy(), TypeError, r"got numpy\.ndarray.*torch\.as_tensor"),
    ("linear", lambda x: x.tolist(), TypeError, r"got list.*torch\.as_tensor"),
    ("linear", lambda x: x.shape, TypeError, r"got torch\.Size.*torch\.as_tensor"),
    ("linear", lambda x: x.to_sparse(), TypeError, "sparse_coo"),
    ("linear", lambda x: x.to_mkldnn(), TypeError, "_mkldnn"),
    ("linear", lambda x: x.to("meta"), TypeError, "meta tensor"),
    ("linear", lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged), TypeError, "nested"),
    ("conv2d", lambda x: torch.randn(2, 3, 9, 9), ValueError, r"\[N, 4, H, W\] or \[4, H, W\], got \[2, 3, 9, 9\]"),
    ("conv2d", lambda x: torch.randn(9, 9), ValueError, r"got \[9, 9\]"),
    ("conv2d", lambda x: torch.randn(1, 2, 4, 9, 9), ValueError, r"got \[1, 2, 4, 9, 9\]"),
    ("conv2d", lambda x: torch.randn(2, 4, 0, 9), ValueError, r"at least 3 for kernel 3.*got 0 \+ 1 \+ 1"),
    ("conv1d", lambda x: torch.randn(2, 5, 9), ValueError, r"\[N, 4, L\] or \[4, L\], got \[2, 5, 9\]"),
    ("conv1d", lambda x: torch.randn(2, 4, 4), ValueError, "dilation 2"),
]  # fmt: skip


@pytest.mark.parametrize("name, change, error, text", BAD_INPUTS, ids=range(len(BAD_INPUTS)))
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_bad_inputs(name: str, change: Any, error: type[Exception], text: str, params: Any) -> None:
    make, shape = LAYERS[name]
    layer = quantized(make(), params)
    with pytest.raises(error, match=text):
        layer(change(torch.randn(shape)))
