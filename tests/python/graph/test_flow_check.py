"""Files whose flows name what capture never names: each is refused before anything of it runs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import octavo
from octavo import CheckpointError
from octavo.checkpoint import safetensors_file
from octavo.graph.functions import FUNCTIONS, operation, takes_word
from octavo.training.trainee import training_of

CALLED: list[object] = []


class Helper(nn.Module):
    """A user's module with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Any, path: str = "") -> Any:
        if path:
            CALLED.append(path)
        return self.fc(x)


class Net(nn.Module):
    """Has methods and properties like those of transformers and timm: save_pretrained and the like."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.gain = nn.Parameter(torch.ones(4))
        self.helper = Helper()

    def save_pretrained(self, path: Any) -> int:
        CALLED.append(path)
        return 0

    @property
    def trap(self) -> Tensor:
        CALLED.append("trap")
        return torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.flatten(self.pool(torch.relu(self.conv(x))), 1) * self.gain
        return self.inner(self.helper(y))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def step(**fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "kind": "float", "inputs": {"tuple": []}, "output": "evil", "module": "", "function": "",
        "args": {"tuple": []}, "kwargs": {"tuple": []}, "params": {"dict": []},
    }  # fmt: skip
    return {"step": {**base, **fields}}


def args(*values: Any) -> dict[str, Any]:
    return {"tuple": list(values)}


def words(**values: Any) -> dict[str, Any]:
    return {"tuple": [{"tuple": [key, value]} for key, value in values.items()]}


REF = {"ref": "x"}
EVIL: dict[str, tuple[dict[str, Any], str]] = {
    "method": (step(function="get_attr", args=args("save_pretrained")), "read parameters and buffers"),
    "method of a child": (step(function="get_attr", args=args("conv.register_forward_hook")), "read parameters"),
    "property": (step(function="get_attr", args=args("trap")), "read parameters and buffers"),
    "module": (step(function="get_attr", args=args("conv")), "read parameters and buffers"),
    "class": (step(function="get_attr", args=args("__class__")), "read parameters and buffers"),
    "globals": (step(function="get_attr", args=args("forward.__globals__")), "read parameters and buffers"),
    "table": (step(function="get_attr", args=args("_parameters")), "read parameters and buffers"),
    "number as name": (step(function="get_attr", args=args(3)), "read parameters and buffers"),
    "no name": (step(function="get_attr"), "read parameters and buffers"),
    "list as name": (step(function="get_attr", args=args(["gain"])), "read parameters and buffers"),
    "reference as name": (step(function="get_attr", args=args(REF)), "read parameters and buffers"),
    "attribute with words": (step(function="get_attr", args=args("gain"), kwargs=words(x=1)), "read parameters"),
    "attribute of a value": (step(function="getattr", args=args(REF, "__class__")), "read .*shape.* of tensors"),
    "attribute with default": (step(function="getattr", args=args(REF, "shape", 1)), "of tensors"),
    "attribute by reference": (step(function="getattr", args=args(REF, REF)), "of tensors"),
    "key": (step(function="builtins.max", args=args([REF, REF]), kwargs=words(key=REF)), "argument words that builtins.max takes, got 'key'"),
    "key of min": (step(function="builtins.min", args=args([REF, REF]), kwargs=words(key=REF)), "got 'key'"),
    "default": (step(function="builtins.max", args=args([REF]), kwargs=words(default=1)), "got 'default'"),
    "out": (step(function="torch.add", args=args(REF, 1), kwargs=words(out=REF)), "got 'out'"),
    "out by position": (step(function="F.normalize", args=args(REF, 2.0, 1, 1e-12, REF)), "write into no argument"),
    "in place": (step(function="F.relu", args=args(REF), kwargs=words(inplace=True)), "got 'inplace'"),
    "unknown word": (step(function="torch.relu", args=args(REF), kwargs=words(callback=REF)), "got 'callback'"),
    "word as number": (step(function="torch.relu", args=args(REF), kwargs={"tuple": [{"tuple": [1, 2]}]}), "kwargs"),
    "function": (step(function="os.system", args=args(REF)), "functions of octavo's table"),
    "torch function": (step(function="torch.load", args=args(REF)), "functions of octavo's table"),
    "torch submodule": (step(function="torch.onnx", args=args(REF)), "functions of octavo's table"),
    "method that is no row": (step(function="Tensor.numpy", args=args(REF)), "functions of octavo's table"),
    "method that writes": (step(function="Tensor.apply_", args=args(REF)), "functions of octavo's table"),
    "dunder": (step(function="Tensor.__reduce_ex__", args=args(REF, 2)), "functions of octavo's table"),
    "constants": (step(function="operator.pow", args=args(10, 10)), "compute with values"),
    "large constants": (step(function="operator.mul", args=args(REF, 10**30)), "plain data"),
    "large in a slice": (step(function="operator.getitem", args=args(REF, {"slice": [0, 10**30, 1]})), "plain data"),
    "slice of a step": (step(function="operator.getitem", args=args(REF, {"slice": [step(), None, None]})), "plain data"),
    "step as argument": (step(function="operator.add", args=args(REF, step())), "plain data"),
    "user's module": (step(module="helper", inputs=args("x"), args=args(REF, "PATH")), "layers whose forward is torch's own"),
    "user's module, one input": (step(module="helper", inputs=args("x")), "layers whose forward is torch's own"),
    "root": (step(module="", inputs=args("x")), "call a module or a function"),
    "container": (step(module="inner", inputs=args("x")), "layers whose forward is torch's own"),
    "no such module": (step(module="conv.weight", inputs=args("x")), "modules of the model"),
    "module's method": (step(module="conv.register_forward_hook", inputs=args("x")), "modules of the model"),
    "both": (step(module="conv", function="torch.relu", inputs=args("x")), "a module or a function"),
    "more arguments": (step(module="pool", inputs=args("x"), args=args(REF, 1, 2)), "arguments that 'pool' takes"),
    "other words": (step(module="pool", inputs=args("x"), args=args(REF), kwargs=words(key=1)), "arguments that 'pool' takes"),
    "no input": (step(module="pool"), "an input of 'pool'"),
    "kind": (step(kind="__init__", function="torch.relu", args=args(REF)), "a known kind"),
    "kind of lowering": (step(kind="table", function="torch.relu", args=args(REF)), "a known kind"),
    "fused": (step(fused={"tuple": [step(function="get_attr", args=args("save_pretrained"))]}), "read parameters"),
    "unknown device": (step(function="Tensor.to", args=args(REF, {"device": "foo"})), "torch device, got 'foo'"),
    "device as number": (step(function="Tensor.to", args=args(REF, {"device": 0})), "torch device, got 0"),
    "dtype": (step(function="Tensor.to", args=args(REF, {"torch": "save"})), "torch dtype"),
    "submodule as dtype": (step(function="Tensor.to", args=args(REF, {"torch": "onnx"})), "torch dtype"),
    "dtype of no text": (step(function="Tensor.to", args=args(REF, {"torch": ["float32"]})), "torch dtype"),
}  # fmt: skip


def _model(path: Path, qat: bool) -> None:
    torch.manual_seed(0)
    octavo.save(octavo.quantize(Net().eval(), 8, data=[X], qat=qat, progress=False), path)


def rewritten(path: Path, qat: bool, evil: dict[str, Any], place: str) -> None:
    """Puts a step into the file: in front of its items, of its region's steps, or of its flow's."""
    tensors, metadata = safetensors_file.read(path)
    field = "trainee" if qat else "model"
    content = json.loads(metadata[field])
    if qat:
        flow = content["plan"]["flows"][0]
        items, captured = flow["items"], flow["flow"]["flow"]
        region = next(i["region"] for i in items if "region" in i)
    else:
        flow = dict(content["flows"][0]["dict"])
        items, captured = flow["items"], flow["flow"]["flow"]
        pairs = next(i["dict"] for i in items if "dict" in i)
        region = dict(pairs)
    if place == "items":
        items.insert(0, evil)
    elif place == "region":
        region["steps"]["tuple"].insert(0, evil)
    elif place == "training":
        captured["training"] = {"dict": [["evil", evil]]}
    else:
        captured["steps"]["tuple"].insert(0, evil)
    safetensors_file.write(path, tensors, {**metadata, field: json.dumps(content)})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    made = {}
    for qat in (False, True):
        _model(path, qat)
        made[qat] = path.read_bytes()
    return made


@pytest.mark.parametrize("qat", [False, True], ids=["model", "trainee"])
@pytest.mark.parametrize("evil, text", EVIL.values(), ids=EVIL.keys())
def test_hostile_steps(
    tmp_path: Path, files: dict[bool, bytes], qat: bool, evil: dict[str, Any], text: str
) -> None:
    path = tmp_path / "x.safetensors"
    for place in ("items", "region", "flow", "training"):
        path.write_bytes(files[qat])
        rewritten(path, qat, copy.deepcopy(evil), place)
        CALLED.clear()
        with pytest.raises(CheckpointError) as info:
            octavo.load(path, Net())
        reason = info.value.__cause__ or info.value
        assert re.search(text, f"{info.value} {reason}"), info.value
        assert not CALLED


@pytest.mark.parametrize("evil, text", EVIL.values(), ids=EVIL.keys())
def test_hostile_plans(tmp_path: Path, evil: dict[str, Any], text: str) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    trainee = octavo.quantize(model, 8, data=[X], qat=True, progress=False)
    path = tmp_path / "plan.json"
    content = json.loads(training_of(trainee).plan.to_json())
    content["flows"][0]["items"].insert(0, evil)
    path.write_text(json.dumps(content))
    CALLED.clear()
    with pytest.raises(ValueError) as info:
        octavo.quantize(model, path, data=[X], progress=False)
    assert re.search(text, str(info.value)), info.value
    assert not CALLED


@pytest.mark.parametrize("qat", [False, True], ids=["model", "trainee"])
@pytest.mark.parametrize(
    "path, text",
    [("conv", "a flow of one of the modules"), ("inner.1", "a flow of one of the modules"), ("gain", "a flow of one of")],
)  # fmt: skip
def test_hostile_paths(
    tmp_path: Path, files: dict[bool, bytes], qat: bool, path: str, text: str
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(files[qat])
    tensors, metadata = safetensors_file.read(file)
    field = "trainee" if qat else "model"
    content = json.loads(metadata[field])
    flow = content["plan"]["flows"][0] if qat else dict(content["flows"][0]["dict"])
    flow["flow"]["flow"]["path"] = path
    safetensors_file.write(file, tensors, {**metadata, field: json.dumps(content)})
    with pytest.raises(CheckpointError, match=text):
        octavo.load(file, Net())


@pytest.mark.parametrize("qat", [False, True], ids=["model", "trainee"])
def test_honest_files_stay(tmp_path: Path, files: dict[bool, bytes], qat: bool) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(files[qat])
    torch.manual_seed(0)
    wanted = octavo.quantize(Net().eval(), 8, data=[X], qat=qat, progress=False)(X)
    assert torch.equal(octavo.load(path, Net())(X), wanted)


class Odd(nn.Module):
    """Reads tensors that are computed: by weight_norm, by a parametrization, of a quantized layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        if kind == "weight_norm":
            layer = nn.utils.weight_norm(layer)
        if kind == "parametrization":
            layer = parametrizations.weight_norm(layer)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.other(x), self.layer.weight, self.layer.bias) + self.layer(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("qat", [False, True], ids=["model", "trainee"])
@pytest.mark.parametrize("kind", ["plain", "weight_norm", "parametrization"])
def test_tensors_that_are_computed(tmp_path: Path, kind: str, qat: bool) -> None:
    torch.manual_seed(0)
    model, x = Odd(kind).eval(), torch.randn(4, 8)
    made = octavo.quantize(model, 8, data=[x], qat=qat, progress=False)
    y = made(x)
    octavo.save(made, tmp_path / "x.safetensors")
    assert torch.equal(octavo.load(tmp_path / "x.safetensors", Odd(kind).eval())(x), y)


def test_every_word_of_torch_is_known() -> None:
    """Those of the operators' schemas, but for those that write, and those that torch's functions do not pass on."""
    without = {"out", "out0", "out1", "names", "self", "inplace", "generator", "path", "l"}
    checked = 0
    for row in FUNCTIONS:
        name = operation(row)
        for space in ("", "linalg_", "special_"):
            packet = getattr(torch.ops.aten, space + name, None)
            if packet is None or not row.startswith(("torch.", "F.", "Tensor.", "linalg.")):
                continue
            for overload in packet.overloads():
                if overload == "out" or overload.endswith(("_out", "_copy")):
                    continue
                for argument in getattr(packet, overload)._schema.arguments:
                    if argument.name not in without and not argument.is_write:
                        assert takes_word(row, argument.name), f"{row}: {argument.name}"
                        checked += 1
    assert checked > 1000
    assert not takes_word("builtins.max", "key") and not takes_word("torch.add", "out")
