"""Torture: models that broke other tools. Each is quantized with and without data and runs, or stays float
with its reason in the report; the input model keeps its bits, its class and its names.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from budgets import LAYER_SQNR, sqnr
from inspection import rows_of, state_bytes
from torture_models import CASES, Case, randomize

# The float model's own notices (padding="same" with an even kernel) are torch's matter.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def tensors(value: Any) -> list[Tensor]:
    """All floating tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    return []


def quantize(model: nn.Module, data: Any = None, **kwargs: Any) -> nn.Module:
    """octavo.quantize without a progress bar; its notices are not errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return octavo.quantize(model, 8, data=data, progress=False, **kwargs)


def calibration(case: Case, model: nn.Module) -> Any:
    """Eight batches; a callable where the forward takes keyword arguments."""
    batches = [case.inputs() for _ in range(8)]
    if case.kwargs:

        def run(m: nn.Module) -> None:
            for batch in batches:
                m(*batch, **case.kwargs)

        return run
    return batches


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace("\n", " "))
@torch.no_grad()
def test_quantizes_and_runs(case: Case, with_data: bool) -> None:
    model = randomize(case.make())
    inputs = case.inputs()
    expected = model(*inputs, **case.kwargs)
    before = state_bytes(model)
    data = calibration(case, model) if with_data else None
    small = quantize(model, data)
    assert state_bytes(model) == before, "the input model was changed"
    if case.name.startswith("root is"):
        assert isinstance(small, nn.Module)
    else:
        assert type(small) is type(model)
    assert [n for n, _ in small.named_modules()] == [n for n, _ in model.named_modules()]

    rows = rows_of(small)
    for name in case.integers:
        assert name in rows, f"{name!r} is not in the report: {sorted(rows)}"
        assert rows[name].bits == 8, f"{name!r} stayed float: {rows[name].reason}"
    for name in case.floats:
        if name in rows:
            assert rows[name].bits == 8 or rows[name].reason, f"{name!r} is float without a reason"

    actual = small(*inputs, **case.kwargs)
    assert type(actual) is type(expected)
    pairs = list(zip(tensors(expected), tensors(actual), strict=True))
    assert pairs
    for want, got in pairs:
        assert got.shape == want.shape and got.dtype == want.dtype
        noise = sqnr(want, got)
        assert noise >= LAYER_SQNR[8], f"{noise:.1f} dB"


@torch.no_grad()
def test_each_call_site_has_its_own_range() -> None:
    """One linear on inputs of about 1 and of about 20: a shared range would cost the small ones 26 dB."""
    model = next(c for c in CASES if c.name == "linear called twice").make().eval()
    batches = [torch.randn(64, 16) for _ in range(8)]
    small = octavo.quantize(model, 8, data=batches, ranges="mse", progress=False)
    x = torch.randn(64, 16)
    assert sqnr(model(x), small(x)) >= LAYER_SQNR[8] + 3


@torch.no_grad()
def test_tied_weights_stay_usable() -> None:
    case = next(c for c in CASES if c.name == "tied head")
    model = case.make().eval()
    small = quantize(model)
    tokens = case.inputs()[0]
    assert sqnr(model.emb.weight, small.emb.weight) >= LAYER_SQNR[8]
    assert torch.equal(small.emb.codes(), small.lm_head.codes())
    assert sqnr(model(tokens), small(tokens)) >= LAYER_SQNR[8]
    assert model.lm_head.weight is model.emb.weight


@torch.no_grad()
def test_flags_still_work() -> None:
    case = next(c for c in CASES if c.name == "control flow on sizes and flags")
    model = case.make().eval()
    small = quantize(model, [case.inputs() for _ in range(4)])
    x = case.inputs()[0]
    assert sqnr(model(x, augment=True), small(x, augment=True)) >= LAYER_SQNR[8]
    with pytest.raises(RuntimeError, match="three channels expected"):
        small(torch.randn(1, 4, 12, 12))


class _Collector:
    def __init__(self) -> None:
        self.seen: list[tuple[str, torch.Size]] = []

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append((type(module).__name__, output.shape))


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_hooks_fire(with_data: bool) -> None:
    model = nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8), relu=nn.ReLU(), b=nn.Conv2d(8, 4, 3)
        )
    )
    randomize(model)
    collector = _Collector()
    pre: list[int] = []
    model.relu.register_forward_hook(collector)
    model.relu.register_forward_hook(collector)
    model.b.register_forward_pre_hook(lambda m, args: pre.append(args[0].shape[1]))
    small = quantize(model, [torch.randn(2, 3, 9, 9) for _ in range(4)] if with_data else None)
    collector.seen.clear()
    pre.clear()
    x = torch.randn(2, 3, 9, 9)
    hooked = small(x)
    assert [shape for _, shape in collector.seen] == [torch.Size([2, 8, 7, 7])] * 2
    assert pre == [8]
    # A hook registered after quantization fires too, and sees floats near the float model's.
    features: list[Tensor] = []
    handle = small.a.register_forward_hook(lambda m, args, output: features.append(output))
    small(x)
    assert len(features) == 1 and features[0].is_floating_point()
    handle.remove()
    assert torch.equal(small(x), hooked), "a hook that only looks must not change the result"
    # A hook may replace the output.
    small.b.register_forward_hook(lambda m, args, output: output * 0)
    assert torch.equal(small(x), torch.zeros_like(hooked))


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_any_batch_and_size(with_data: bool) -> None:
    model = randomize(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    )
    small = quantize(model, [torch.randn(4, 3, 16, 16) for _ in range(4)] if with_data else None)
    for batch in (1, 2, 3, 5, 8, 13, 33):
        x = torch.randn(batch, 3, 16, 16)
        assert sqnr(model(x), small(x)) >= LAYER_SQNR[8]
    for height, width in ((7, 31), (16, 5), (33, 33)):
        x = torch.randn(2, 3, height, width)
        y = small(x)
        assert y.shape == model(x).shape
        assert sqnr(model(x), y) >= LAYER_SQNR[8] - 3
    empty = small(torch.randn(0, 3, 16, 16))
    assert empty.shape == (0, 4, 6, 6)
    linear = quantize(nn.Linear(16, 5), [torch.randn(4, 16)] if with_data else None)
    assert linear(torch.randn(1, 16)).shape == (1, 5)
    assert linear(torch.randn(0, 16)).shape == (0, 5)
    assert linear(torch.randn(2, 0, 16)).shape == (2, 0, 5)


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_strides_give_the_same_bits(with_data: bool) -> None:
    data = [torch.randn(4, 16)] if with_data else None
    linear = quantize(nn.Linear(16, 5), data)
    base = torch.randn(8, 16)
    reference = linear(base.clone())
    storage = torch.zeros(8 * 16 + 1)
    storage[1:] = base.flatten()
    wide = torch.randn(8, 40)
    wide[:, 3:35:2] = base
    for view in (
        base.t().contiguous().t(),
        torch.stack([base, base])[1],
        storage[1:].view(8, 16),
        wide[:, 3:35:2],
    ):
        assert torch.equal(linear(view), reference)
    assert torch.equal(linear(base[:1].expand(5, 16)), reference[:1].expand(5, 5))
    assert torch.equal(linear(base[0]), reference[0])
    assert torch.equal(linear(base.view(2, 1, 2, 2, 16)), reference.view(2, 1, 2, 2, 5))

    conv = quantize(nn.Conv2d(6, 4, 3, padding=1), [torch.randn(2, 6, 9, 9)] if with_data else None)
    x = torch.randn(3, 6, 9, 9)
    expected = conv(x)
    big = torch.randn(3, 12, 18, 9)
    big[:, ::2, ::2] = x
    for view in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        big[:, ::2, ::2],
    ):
        assert torch.equal(conv(view), expected)
    assert torch.equal(conv(x[1]), expected[1])
    assert torch.equal(conv(x[:1].expand(3, 6, 9, 9)), expected[:1].expand(3, 4, 9, 9))


@torch.no_grad()
def test_inputs_with_strange_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    for data in (torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), -3.0)):
        small = quantize(model, [data])
        assert bool(small(data).isfinite().all())
        assert torch.allclose(small(data), model(data), atol=0.05)
    small = quantize(model, [torch.randn(2, 3, 8, 8) for _ in range(4)])
    x = torch.randn(2, 3, 8, 8)
    x[0, 0, 0, 0] = 1e30
    x[0, 1, 0, 0], x[0, 2, 0, 0] = float("inf"), float("-inf")
    x[0, 0, 1, 1], x[0, 0, 2, 2] = float("nan"), 1e-42
    y = small(x)
    assert bool(y.isfinite().all())
    assert torch.equal(y[1], small(x[1:])[0]), "a strange sample must not touch its neighbour"
    dynamic = quantize(nn.Linear(16, 4))
    odd = torch.randn(3, 16)
    odd[0, 0] = 1e30
    odd[2] = 0
    assert torch.equal(dynamic(odd)[1], dynamic(odd[1:2])[0])
    assert torch.allclose(dynamic(odd)[2], dynamic.bias)
    tiny = torch.full((2, 16), 1e-41)
    assert bool(dynamic(tiny).isfinite().all())


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_a_sample_has_the_same_bits_in_any_batch(with_data: bool) -> None:
    model = randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    )
    small = quantize(model, [torch.randn(4, 3, 10, 10)] if with_data else None)
    x = torch.randn(9, 3, 10, 10) * torch.logspace(-2, 2, 9).view(-1, 1, 1, 1)
    together = small(x)
    for i in range(9):
        if with_data:
            assert torch.equal(small(x[i : i + 1])[0], together[i])
    layer = quantize(nn.Linear(16, 8))
    rows = torch.randn(33, 16) * torch.logspace(-3, 3, 33).view(-1, 1)
    together = layer(rows)
    for i in range(33):
        assert torch.equal(layer(rows[i : i + 1])[0], together[i])
    padded = torch.cat([rows, torch.zeros(7, 16)])
    assert torch.equal(layer(padded)[:33], together)
    conv = quantize(nn.Conv2d(3, 4, 3))
    together = conv(x)
    for i in range(9):
        assert torch.equal(conv(x[i : i + 1])[0], together[i])


class Net(nn.Module):
    """Importable, so that pickle finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)) + y)
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def net_pair(with_data: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    model = randomize(Net())
    small = quantize(model, [torch.randn(4, 3, 10, 10) for _ in range(4)] if with_data else None)
    return model, small, torch.randn(3, 3, 10, 10)


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_models_stay_ordinary_objects(with_data: bool) -> None:
    _, small, x = net_pair(with_data)
    expected = small(x)
    twin = copy.deepcopy(small)
    assert torch.equal(twin(x), expected)
    for protocol in range(2, 6):
        assert torch.equal(pickle.loads(pickle.dumps(small, protocol))(x), expected)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    # The copy is its own model: changing it leaves the original alone.
    twin.fc.bias.data += 1
    state = twin.state_dict()
    twin.load_state_dict(state)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(small(x), expected)
    # state_dict into a twin of the same structure, both ways of assignment.
    for assign in (False, True):
        other = copy.deepcopy(small)
        other.load_state_dict(copy.deepcopy(small.state_dict()), strict=True, assign=assign)
        assert torch.equal(other(x), expected)


_CHILD = """
import sys, torch, octavo
sys.path[:0] = {path!r}
from test_torture import Net
model = octavo.load({file!r}, Net())
print(octavo.isa(), model(torch.load({x!r})).numpy().tobytes().hex())
"""


@pytest.mark.parametrize("with_data", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_save_here_load_on_another_isa(with_data: bool, tmp_path: Path) -> None:
    import os

    _, small, x = net_pair(with_data)
    file, input_file = tmp_path / "net.safetensors", tmp_path / "x.pt"
    octavo.save(small, file)
    torch.save(x, input_file)
    if not with_data:
        small = octavo.load(file, Net())
    expected = small(x).numpy().tobytes().hex()
    here = str(Path(__file__).parent)
    path = [here, str(Path(here).parent), *[p for p in sys.path if p]]
    for isa in octavo.isas():
        code = _CHILD.format(path=path, file=str(file), x=str(input_file))
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OCTAVO_ISA": isa},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        used, bits = result.stdout.split()
        assert used == isa
        if with_data:  # one region; without data float steps between the layers are torch's
            assert bits == expected, f"{isa} differs"


@torch.no_grad()
def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    model, small, _x = net_pair(True)
    missing = model.load_state_dict(small.state_dict(), strict=False)
    assert "conv1.weight" in missing.missing_keys, "integers must never be loaded as float weights"
    with pytest.raises(RuntimeError, match=r"octavo\.load|Unexpected key"):
        Net().load_state_dict(small.state_dict())
    with pytest.raises((RuntimeError, ValueError), match="conv1"):
        copy.deepcopy(small).load_state_dict(model.state_dict())
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "float.safetensors")
    with pytest.raises(octavo.CheckpointError, match="quantiz"):
        octavo.load(tmp_path / "float.safetensors", Net())


@torch.no_grad()
def test_quantized_twice_in_parts_dequantized_and_moved() -> None:
    model, small, x = net_pair(True)
    with pytest.raises(ValueError, match="already quantized"):
        octavo.quantize(small, 8)
    part = quantize(model, exclude=["conv1"])
    rows = rows_of(part)
    assert rows["conv1"].bits != 8 and rows["conv1"].reason and rows["conv2"].bits == 8
    only = rows_of(quantize(model, include=["fc"]))
    assert only["fc"].bits == 8 and only["conv1"].bits != 8
    back = octavo.dequantize(small)
    assert type(back.conv1) is nn.Conv2d and type(back.fc) is nn.Linear
    assert sqnr(model(x), back(x)) >= 30
    before = small(x)
    for move in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()):
        twin = move(copy.deepcopy(small))
        assert torch.equal(twin(x), before)
        assert twin(x.half()).dtype == torch.float16
    small.cpu()
    small.train()
    assert torch.equal(small(x), before), "an integer model ignores train()"
    with pytest.raises(RuntimeError, match="CPU"):
        copy.deepcopy(small).to("meta")
    inside = model.fc
    model.fc = quantize(model.fc)
    assert sqnr(nn.Sequential(inside)(torch.ones(2, 8)), model.fc(torch.ones(2, 8))) >= 26


@torch.no_grad()
def test_googlenet_like_training_head() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aux, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            y = F.relu(self.conv(x)).mean((2, 3))
            return (self.fc(y), self.aux(y)) if self.training else self.fc(y)

    model = Aux()
    model.train()
    small = quantize(model, [torch.randn(2, 3, 8, 8) for _ in range(3)])
    assert model.training, "the input model keeps its mode"
    rows = rows_of(small)
    assert rows["conv"].bits == 8 and rows["fc"].bits == 8
    assert "never reached" in rows["aux"].reason
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    assert sqnr(model(x), small(x)) >= LAYER_SQNR[8]
