"""save and load: the same bits back, without tracing; other models and damaged contents refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.checkpoint import safetensors_file
from octavo.checkpoint.load import load
from octavo.checkpoint.save import save
from octavo.errors import CheckpointError
from octavo.runtime.captured_forward import captured_forward
from small_models import Net, captured, layers, quantized, trained


@pytest.fixture(scope="module")
def data() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3, 32, 32) for _ in range(2)]


@pytest.fixture(scope="module", params=["dynamic", "whole"])
def small(request: pytest.FixtureRequest, data: list[torch.Tensor]) -> nn.Module:
    return captured(trained(Net()), None if request.param == "dynamic" else data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def test_round_trip(
    small: nn.Module, data: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = small(data[0])
    save(small, path)
    monkeypatch.setattr(torch.fx.Tracer, "trace", None)  # Nothing may be traced.
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = load(path, model)
    assert type(again) is Net and not again.training and torch.equal(again(data[0]), y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), (
        "the model stays as it is"
    )
    assert repr(again) == repr(small)
    first, second = captured_forward(small), captured_forward(again)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert [i.program for i in first.items] == [i.program for i in second.items]
        assert [i.steps for i in first.items] == [i.steps for i in second.items]
    content = path.read_bytes()
    save(again, path)  # Over the file that it was loaded from.
    assert path.read_bytes() == content


def test_files_do_not_depend_on_the_machine(small: nn.Module, data: Any, path: Path) -> None:
    y, before, files = small(data[0]), octavo.isa(), set()
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            save(small, path)
            files.add(path.read_bytes())
            assert torch.equal(load(path, Net())(data[0]), y)
    finally:
        octavo.set_isa(before)
    assert len(files) == 1


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_is_packed(bits: int, path: Path) -> None:
    model = nn.Sequential(nn.Linear(33, 5))
    model[0] = quantized(model[0], None, bits, path="0")
    save(model, path)
    tensors, _ = safetensors_file.read(path)
    assert tensors["0.weight_packed"].shape == (5, (33 * bits + 7) // 8)
    again = load(path, nn.Sequential(nn.Linear(33, 5)))
    assert torch.equal(again[0].codes(), model[0].codes())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(10, 8)
        self.other = nn.EmbeddingBag(10, 8)
        self.other.weight = self.embed.weight
        self.twice = nn.Linear(8, 8)
        self.again = self.twice
        self.branches = nn.ModuleDict({"a/b": nn.Linear(8, 8)})
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("local", torch.tensor(5.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x[:, None]) + self.other(x[:, None])
        return self.branches["a/b"](self.again(self.twice(x))) * self.count


def test_tied_shared_and_odd_names(path: Path) -> None:
    model = Tied()
    small = captured(model, None)
    small.count.fill_(4)
    save(small, path)
    tensors, _ = safetensors_file.read(path)
    assert set(tensors) == {
        "embed.weight",
        "count",
        *(
            f"{n}.{k}"
            for n in ("twice", "branches.a%2Fb")
            for k in ("bias", "weight_packed", "weight_scale")
        ),
    }
    again = load(path, Tied())
    assert again.embed.weight is again.other.weight and again.twice is again.again
    x = torch.arange(10)
    assert torch.equal(again(x), small(x)) and float(again.local) == 5.0


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("old", [False, True], ids=["parametrization", "hook"])
def test_models_with_weight_norm(old: bool, path: Path) -> None:
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm

    def build() -> nn.Module:
        return nn.Sequential(norm(nn.Conv1d(3, 4, 3)), nn.ReLU(), norm(nn.ConvTranspose1d(4, 2, 3)))

    model, x = build(), torch.randn(2, 3, 9)
    small = captured(model, None)
    save(small, path)
    fresh = build()
    again = load(path, fresh)
    assert torch.equal(again(x), small(x)) and not list(again[0]._forward_pre_hooks)
    assert fresh(x).shape == small(x).shape


def test_wrong_models_are_named(small: nn.Module, path: Path) -> None:
    save(small, path)

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)

    with pytest.raises(
        CheckpointError,
        match=r"expected the architecture that was saved, got \d+ differences.*more",
    ):
        load(path, Other())
    wide = Net()
    wide.fc = nn.Linear(8, 6)
    with pytest.raises(
        CheckpointError, match=r"layer 'fc': shape \[6, 8\] as the model has it, got \[5, 8\]"
    ):
        load(path, wide)
    renamed = Net()
    renamed.fcc = renamed.fc
    del renamed.fc
    with pytest.raises(CheckpointError, match=r"'fc': not in the model \(near: 'fcc'\)"):
        load(path, renamed)
    with pytest.raises(TypeError, match=r"got 'net'.*build_model\(\)"):
        load(path, "net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a float model, got one with quantized layers"):
        load(path, small)


def test_wrong_things_to_save(path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a quantized nn\.Module, got {}"):
        save({}, path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got one without quantized layers"):
        save(Net(), path)
    assert not path.exists()


def test_float_files_have_a_remedy(path: Path) -> None:
    safetensors_file.write(path, Net().state_dict(), {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"without quantization metadata.*octavo\.quantize"):
        load(path, Net())


Change = Callable[[dict[str, Any], dict[str, torch.Tensor], dict[str, str]], None]


def _layer(key: str, value: Any) -> Change:
    return lambda content, tensors, metadata: content["layers"]["fc"].__setitem__(key, value)


def _tensor(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda content, tensors, metadata: tensors.__setitem__(key, change(tensors[key]))


def _item(key: str, value: Any) -> Change:
    def change(content: dict[str, Any], tensors: Any, metadata: Any) -> None:
        pairs = content["flows"][0]["dict"]
        item = dict(map(tuple, pairs))["items"][0]["dict"]
        next(pair for pair in item if pair[0] == key)[1] = value

    return change


def _last_scale(value: float) -> Change:
    def change(scale: torch.Tensor) -> torch.Tensor:
        scale = scale.clone()
        scale[3] = value
        return scale

    return _tensor("fc.weight_scale", change)


CHANGES: dict[str, tuple[Change, str]] = {
    "newer format": (lambda c, t, m: m.update(version="2.0"), r"format version 1\.x, got '2\.0'"),
    "no version": (lambda c, t, m: m.update(version=""), "got ''"),
    "no JSON": (lambda c, t, m: c.update({"": object}), "JSON"),
    "no layers": (lambda c, t, m: c.update(layers={}), "layers"),
    "layers as list": (lambda c, t, m: c.update(layers=[]), "'layers'"),
    "bits 9": (_layer("bits", 9), "layer 'fc': bits in 2..8, got 9"),
    "bits true": (_layer("bits", True), "bits in 2..8, got True"),
    "bits 4": (_layer("bits", 4), r"fc.weight_packed: expected uint8 of shape \(5, 4\), got uint8 of shape \(5, 8\)"),
    "unknown grid": (_layer("grid", "os.system"), "a grid of linear, pot, apot, log, kmeans, nf, got 'os.system'"),
    "unknown class": (_layer("type", "os.system"), "to be a QLinear, got 'os.system'"),
    "shape": (_layer("shape", [8, 5]), r"shape \[5, 8\] as the model has it, got \[8, 5\]"),
    "input scale 0": (_layer("input", ["0x0p+0", 0, 8]), "positive normal float32"),
    "input scale text": (_layer("input", ["zero", 0, 8]), "damaged"),
    "input zero point": (_layer("input", ["0x1p-5", 256, 8]), r"zero point in 0..255, got 256"),
    "input bits": (_layer("input", ["0x1p-5", 0, 9]), "activation bits in 2..8, got 9"),
    "input as number": (_layer("input", 3), "damaged"),
    "scale 0": (_last_scale(0.0), "fc.weight_scale: .*got 0.0 at index 3"),
    "scale NaN": (_last_scale(float("nan")), "got nan at index 3"),
    "scale denormal": (_last_scale(1e-40), "at index 3"),
    "scale length": (_tensor("fc.weight_scale", lambda s: s[:4].clone()), r"float32 of shape \(5,\), got float32 of shape \(4,\)"),
    "scale type": (_tensor("fc.weight_scale", lambda s: s.double()), "float64"),
    "code -128": (_tensor("fc.weight_packed", lambda p: torch.full_like(p, 128)), r"codes of at least -127, got -128"),
    "bias length": (_tensor("fc.bias", lambda b: b[:2].clone()), r"fc.bias: expected float32 of shape \(5,\)"),
    "missing tensor": (lambda c, t, m: t.__delitem__("fc.bias"), "tensor 'fc.bias', got none"),
    "extra tensor": (lambda c, t, m: t.update(more=torch.ones(1)), r"got 1 others \(\['more'\]\)"),
}  # fmt: skip
WHOLE: dict[str, tuple[Change, str]] = {
    "program": (_item("program", "octavo.region 2\n"), "octavo.region 1"),
    "program of other sizes": (_item("program", "octavo.region 1\n0 = quantize in=0 layout=image s=0x1p-5 z=0 max=255\nout 0\n"), "region"),
    "panel": (_item("panels", ["avg"]), "made of quantized layers, got 'avg'"),
    "steps": (_item("steps", {"tuple": [3]}), "steps, got 3"),
    "function": (_item("steps", {"tuple": [{"step": {"kind": "float", "inputs": {"tuple": []}, "output": "y", "function": "os.system"}}]}), "functions of octavo's table, got 'os.system'"),
    "module": (_item("steps", {"tuple": [{"step": {"kind": "float", "inputs": {"tuple": []}, "output": "y", "module": "x.y"}}]}), "modules of the model, got 'x.y'"),
    "values": (_item("values", {"dict": [["x", 99]]}), "values 0"),
    "unknown tag": (_item("values", {"object": 1}), "damaged"),
}  # fmt: skip


def apply(path: Path, change: Change) -> None:
    """Writes the file anew with other contents and a fitting digest."""
    tensors, metadata = safetensors_file.read(path)
    content = json.loads(metadata["model"])
    change(content, tensors, metadata)
    metadata["model"] = "{" if "" in content else json.dumps(content)
    safetensors_file.write(path, tensors, metadata)


@pytest.mark.parametrize("change, text", CHANGES.values(), ids=CHANGES.keys())
def test_bad_contents(small: nn.Module, path: Path, change: Change, text: str) -> None:
    save(small, path)
    apply(path, change)
    with pytest.raises(CheckpointError, match=text):
        load(path, Net())


@pytest.mark.parametrize("change, text", WHOLE.values(), ids=WHOLE.keys())
def test_bad_regions(data: Any, path: Path, change: Change, text: str) -> None:
    save(captured(trained(Net()), data), path)
    apply(path, change)
    with pytest.raises(CheckpointError, match=text):
        load(path, Net())


def test_padding_bits_are_zero(path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5))
    model[0] = quantized(model[0], None, 3, path="0")
    save(model, path)
    apply(path, lambda c, t, m: t.update({"0.weight_packed": t["0.weight_packed"] | 128}))
    with pytest.raises(CheckpointError, match="padding bits of 0"):
        load(path, nn.Sequential(nn.Linear(3, 5)))


def test_layers_keep_their_names(small: nn.Module, path: Path) -> None:
    save(small, path)
    again = load(path, Net())
    assert {n: layer.path for n, layer in layers(again).items()} == {n: n for n in layers(again)}
    with pytest.raises(ValueError, match=r"layer 'stem\.0'"):
        again(torch.randn(2, 4, 32, 32))
