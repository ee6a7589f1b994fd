"""A broken state of a layer: refused in a file and in a state_dict, with the same words, and nothing is changed."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.checkpoint import safetensors_file
from octavo.nn.layer import QLayer
from small_models import RANGE, quantized

X = torch.randn(64, 40, generator=torch.Generator().manual_seed(1))


def alone(module: nn.Module, bits: int = 8, static: bool = False) -> nn.Module:
    """``module`` as a quantized layer in a model of its own, its scales for whole channels."""
    return nn.Sequential(quantized(module, RANGE if static else None, bits, path="0"))


def small(module: nn.Module, bits: int, data: Tensor | None = None, **options: Any) -> nn.Module:
    """``module`` in a model of its own, quantized by the public call."""
    return octavo.quantize(nn.Sequential(module).eval(), bits, data, progress=False, **options)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "linear": (lambda: nn.Linear(40, 70), alone),
    "linear without bias": (lambda: nn.Linear(40, 70, bias=False), alone),
    "static linear": (lambda: nn.Linear(40, 70), lambda m: alone(m, static=True)),
    "linear of 5 bits": (lambda: nn.Linear(41, 70), lambda m: alone(m, 5)),
    "linear of 3 bits": (lambda: nn.Linear(41, 70), lambda m: alone(m, 3)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), alone),
    "static conv": (lambda: nn.Conv1d(4, 6, 3), lambda m: alone(m, static=True)),
    "embedding": (lambda: nn.Embedding(50, 40), lambda m: small(m, 8)),
    "embedding of groups": (lambda: nn.Embedding(50, 40), lambda m: small(m, 4, group_size=32)),
    "embedding with zero points": (
        lambda: nn.Embedding(50, 40),
        lambda m: small(m, 3, symmetric=False),
    ),
    "groups": (lambda: nn.Linear(40, 70), lambda m: small(m, 4, group_size=32)),
    "static groups": (
        lambda: nn.Linear(40, 70),
        lambda m: small(m, 4, X, activations=6, group_size=32),
    ),
    "groups with zero points": (
        lambda: nn.Linear(40, 70),
        lambda m: small(m, 4, group_size=16, symmetric=False),
    ),
    "channels with zero points": (
        lambda: nn.Linear(40, 70),
        lambda m: small(m, 6, symmetric=False, activations="float"),
    ),
    "levels": (lambda: nn.Linear(40, 70), lambda m: small(m, 4, grid="kmeans", group_size=32)),
    "levels of channels": (lambda: nn.Linear(40, 70), lambda m: small(m, 5, grid="nf")),
    "levels of a conv": (lambda: nn.Conv2d(4, 6, 3), lambda m: small(m, 4, grid="apot")),
    "levels of an embedding": (lambda: nn.Embedding(50, 40), lambda m: small(m, 4, grid="nf")),
}


@functools.cache
def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module, quantize = LAYERS[kind]
    return quantize(module())


def float_model(kind: str) -> nn.Module:
    return nn.Sequential(LAYERS[kind][0]()).eval()


# ---- what can be broken, by the names of the state's members ------------------------------------------

Break = Callable[[Tensor], Tensor]


def put(value: float) -> Break:
    """The last number is ``value``."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[-1] = value
        return x

    return change


FORMS: dict[str, Break] = {
    "one row less": lambda x: x[:-1].clone(),
    "one row more": lambda x: torch.cat([x, x[:1]]),
    "no rows": lambda x: x[:0].clone(),
    "a dimension more": lambda x: x[:, None].clone(),
    "flat": lambda x: x.flatten()[None].clone(),
    **{
        f"as {dtype}".replace("torch.", ""): lambda x, dtype=dtype: x.to(dtype)
        for dtype in (torch.float64, torch.float16, torch.int8, torch.uint8, torch.int32)
    },
}
VALUES: dict[str, dict[str, Break]] = {
    "weight_scale": {
        str(value): put(value)
        for value in (0.0, -0.0, math.nan, math.inf, -math.inf, 2.0**-127, -(2.0**-127))
    },
    "bias": {str(value): put(value) for value in (math.nan, math.inf, -math.inf)},
    "weight_levels": {
        "-128 first": lambda x: torch.cat([torch.full_like(x[:, :1], -128), x[:, 1:]], 1),
        "descending": lambda x: x.flip(1).contiguous(),
    },
}
RANGES: dict[str, tuple[Any, Any]] = {
    **{
        f"scale {value}": (torch.tensor(value, dtype=torch.float64), None)
        for value in (0.0, -1.0, math.nan, math.inf, 2.0**-127, 0.1, 1e300)
    },
    "zero point -1": (None, torch.tensor(-1)),
    "zero point beyond the codes": (None, torch.tensor(256)),
    "a large zero point": (None, torch.tensor(2**40)),
}


def of_form(layer: QLayer) -> dict[str, dict[str, Break]]:
    """What no layer of this form may hold, beside VALUES."""
    found: dict[str, dict[str, Break]] = {"weight_packed": {}, "weight_scale": {}}
    linear = layer.symmetric and layer.levels is None
    per_row = math.prod(layer.weight_shape[1:]) * layer.bits
    if per_row % 8:
        found["weight_packed"]["padding bits"] = lambda x: x | 128
    if linear and layer.bits >= 5:
        lowest = torch.full(layer.weight_shape, -(2 ** (layer.bits - 1)), dtype=torch.int8)
        found["weight_packed"]["the lowest code"] = lambda x: octavo.ops.pack_bits(
            lowest, layer.bits
        )
    if layer.packed:
        found["weight_scale"]["negative"] = put(-1.0)
    if layer.group_size:
        found["weight_scale"]["no bfloat16"] = put(1 + 2.0**-12)
    if not layer.symmetric:
        found["weight_zero_point"] = {"beyond the codes": put(2**layer.bits)}
    return found


def breaks(kind: str) -> Iterator[tuple[str, str, Break]]:
    (layer,) = model_of(kind)
    state = layer.state_dict()
    for member, tensor in state.items():
        if member.startswith("input"):
            continue
        for name, change in FORMS.items():
            broken = change(tensor)
            if (broken.dtype, broken.shape) != (tensor.dtype, tensor.shape):
                yield member, name, change
        for name, change in {**VALUES.get(member, {}), **of_form(layer).get(member, {})}.items():
            yield member, name, change


CASES = [
    pytest.param(kind, member, change, id=f"{kind}: {member} {name}")
    for kind in LAYERS
    for member, name, change in breaks(kind)
]


# ---- the two roads ------------------------------------------------------------------------------------


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def by_state_dict(kind: str, changed: dict[str, Any]) -> str:
    """What load_state_dict says; the layer must be as it was. "" if it takes the state."""
    target = copy.deepcopy(model_of(kind))
    (layer,) = target
    before, panel, p = copy.deepcopy(target.state_dict()), layer.panel, layer.input_params
    messages = []
    for assign in (False, True):
        try:
            target.load_state_dict(changed, assign=assign)
        except RuntimeError as error:
            messages.append(str(error))
            assert same(target.state_dict(), before), "a refused state changes nothing"
            assert layer.panel is panel and layer.input_params == p
        else:
            messages.append("")
            target = copy.deepcopy(model_of(kind))
    assert messages[0] == messages[1]
    return messages[0]


def by_file(kind: str, changed: dict[str, Any], path: Path) -> str:
    """What load says of a file with that state; "" if it takes it."""
    octavo.save(model_of(kind), path)
    _, metadata = safetensors_file.read(path)
    content = json.loads(metadata["model"])
    state = {f"0.{key}": value for key, value in changed.items()}
    scale, zero_point = state.pop("0.input_scale", None), state.pop("0.input_zero_point", None)
    if scale is not None:
        bits = content["layers"]["0"]["input"][2]
        content["layers"]["0"]["input"] = [float(scale).hex(), int(zero_point), bits]
    metadata["model"] = json.dumps(content)
    safetensors_file.write(path, state, metadata)
    try:
        octavo.load(path, float_model(kind))
    except octavo.CheckpointError as error:
        return str(error)
    return ""


def sentence(message: str) -> str:
    """What is said of the state itself."""
    found = re.search(
        r"(0\.\w+: expected .*, got .*)\. (?:The file is|Load the state_dict)", message
    )
    assert found, message
    return found[1]


def both(kind: str, change: dict[str, Any], path: Path) -> tuple[str, str]:
    """The messages of both roads; "" where a road takes the state."""
    state = dict(model_of(kind)[0].state_dict())
    state.update(change)
    return by_state_dict(kind, {f"0.{k}": v for k, v in state.items()}), by_file(kind, state, path)


@pytest.mark.parametrize("kind, member, change", CASES)
def test_a_broken_tensor(kind: str, member: str, change: Break, tmp_path: Path) -> None:
    broken = change(model_of(kind)[0].state_dict()[member])
    one, other = both(kind, {member: broken}, tmp_path / "net.safetensors")
    assert sentence(one) == sentence(other)
    assert sentence(one).startswith(f"0.{member}: expected ")


@pytest.mark.parametrize("kind", ["static linear", "static conv", "static groups"])
@pytest.mark.parametrize("change", RANGES.values(), ids=RANGES.keys())
def test_a_broken_range(kind: str, change: tuple[Any, Any], tmp_path: Path) -> None:
    named = zip(("input_scale", "input_zero_point"), change, strict=True)
    changed = {name: value for name, value in named if value is not None}
    one, other = both(kind, changed, tmp_path / "net.safetensors")
    assert sentence(one) == sentence(other)


# What a range in a state_dict can be beside what JSON can say.
NO_RANGES: dict[str, tuple[Any, Any]] = {
    "two scales": (torch.ones(2), None),
    "no scale": (torch.ones(0), None),
    "an integer as scale": (torch.tensor(1), None),
    "a meta tensor": (torch.tensor(1.0, device="meta"), None),
    "a real zero point": (None, torch.tensor(3.5)),
    "two zero points": (None, torch.tensor([3, 4])),
    "a bool": (None, torch.tensor(True)),
}


@pytest.mark.parametrize("change", NO_RANGES.values(), ids=NO_RANGES.keys())
def test_a_range_that_is_none(change: tuple[Any, Any]) -> None:
    state = dict(model_of("static linear").state_dict())
    for name, value in zip(("input_scale", "input_zero_point"), change, strict=True):
        if value is not None:
            state[f"0.{name}"] = value
    assert sentence(by_state_dict("static linear", state)).startswith("0.input: expected ")


@pytest.mark.parametrize("kind", LAYERS)
def test_a_missing_tensor_and_one_too_many(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    state = model_of(kind)[0].state_dict()
    for member in state:
        rest = {key: value for key, value in state.items() if key != member}
        with pytest.raises(RuntimeError, match=f'Missing key.*"0.{member}"'):
            copy.deepcopy(model_of(kind)).load_state_dict({f"0.{k}": v for k, v in rest.items()})
        if not member.startswith("input"):
            assert f"tensor '0.{member}', got none" in by_file(kind, rest, path)
    for member in ("bias", "weight_levels", "weight_zero_point"):
        if member not in state:
            more = {**state, member: torch.zeros(len(state["weight_packed"]))}
            with pytest.raises(RuntimeError, match=f'Unexpected key.*"0.{member}"'):
                copy.deepcopy(model_of(kind)).load_state_dict(
                    {f"0.{k}": v for k, v in more.items()}
                )
            assert f"0.{member}" in by_file(kind, more, path)


def test_parts_of_a_state_where_that_is_asked() -> None:
    """With strict=False what is missing stays."""
    layer = copy.deepcopy(model_of("static linear"))[0]
    before = copy.deepcopy(layer.state_dict())
    found = layer.load_state_dict({"input_zero_point": torch.tensor(3)}, strict=False)
    assert layer.input_params.zero_point == 3 and layer.input_params.scale == RANGE.scale
    assert "input_scale" in found.missing_keys and "weight_packed" in found.missing_keys
    layer.load_state_dict({"bias": before["bias"] + 1}, strict=False)
    assert torch.equal(layer.bias, before["bias"] + 1)
    assert torch.equal(layer.weight_packed(), before["weight_packed"])


@pytest.mark.parametrize("kind", LAYERS)
def test_good_states_are_taken_on_both_roads(kind: str, tmp_path: Path) -> None:
    """As they are; with another sign or type of the scales where layers may have it."""
    (layer,) = model_of(kind)
    scale = layer.weight_scale.detach()
    changes = [{}]
    if not layer.packed:
        changes.append({"weight_scale": -scale})
    if layer.group_size:
        changes.append({"weight_scale": scale.bfloat16()})
    for change in changes:
        assert both(kind, change, tmp_path / "net.safetensors") == ("", "")


def test_a_float_weight_among_the_tensors() -> None:
    message = by_state_dict("linear", nn.Sequential(nn.Linear(40, 70)).state_dict())
    assert "expected integer codes (0.weight_packed), got a float weight (0.weight)" in message


def test_ranges_of_trainees_are_read_alike(tmp_path: Path) -> None:
    """A scale that is no float32 would not be the one that was saved."""
    trainee = octavo.quantize(nn.Sequential(nn.Linear(40, 70)), 8, X, qat=True, progress=False)
    path = tmp_path / "net.safetensors"
    octavo.save(trainee, path)
    tensors, metadata = safetensors_file.read(path)
    content = json.loads(metadata["trainee"])
    for scale, zero_point in ((0.1, 0), (2.0**-127, 0), (math.inf, 0), (0.5, 256), (0.5, True)):
        for key, (_, _, bits) in content["params"].items():
            params = {**content["params"], key: [scale.hex(), zero_point, bits]}
            metadata["trainee"] = json.dumps({**content, "params": params})
            safetensors_file.write(path, tensors, metadata)
            with pytest.raises(
                octavo.CheckpointError, match=rf"range '{key}': expected a .*, got "
            ):
                octavo.load(path, nn.Sequential(nn.Linear(40, 70)))
