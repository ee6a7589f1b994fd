"""Bad inputs: exception type and message, and afterwards model, file and process as before."""

from __future__ import annotations

import copy
import gc
import json
import os
import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import octavo
from budgets import LAYER_SQNR, sqnr
from inspection import rows_of, state_bytes
from octavo import CalibrationError, CheckpointError, NothingQuantizedError, OctavoError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning:torch")


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()


BATCH = (2, 3, 8, 8)


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randn(*BATCH) for _ in range(count)]


def quantize(model: Any, bits: Any = 8, **kwargs: Any) -> nn.Module:
    return octavo.quantize(model, bits, progress=False, **kwargs)


def refuses(
    error: type[BaseException] | tuple[type[BaseException], ...],
    text: str,
    call: Callable[[], Any],
    model: nn.Module | None = None,
) -> None:
    """The call raises `error` with `text` in the one message form, and leaves the model alone."""
    before = state_bytes(model) if model is not None else ""
    forwards = (
        {id(m): m.__dict__.get("forward") for m in model.modules()} if model is not None else {}
    )
    with pytest.raises(error, match=text) as info:
        call()
    message = str(info.value)
    assert len(message) < 2000 or isinstance(info.value, OSError), "a wall of text"
    assert "Traceback" not in message and ".cpp:" not in message and "frame #" not in message
    if model is not None:
        assert state_bytes(model) == before
        assert {id(m): m.__dict__.get("forward") for m in model.modules()} == forwards


# ---- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -4])
def test_bits_out_of_range(bits: int) -> None:
    model = small_net()
    refuses(ValueError, rf"2\.\.8.*got {bits}", lambda: quantize(model, bits), model)


@pytest.mark.parametrize("bits", ["4", True, None, float("nan")])
def test_bits_of_wrong_type(bits: Any) -> None:
    model = small_net()
    refuses(TypeError, "bits", lambda: quantize(model, bits), model)


def test_numpy_integers_are_bits() -> None:
    assert rows_of(quantize(small_net(), np.int64(8)))["0"].bits == 8


def test_unknown_module() -> None:
    model = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)})
    refuses(ValueError, "fc9(.|\n)*fc[12]", lambda: quantize(model, {"fc9": 8}), model)


def test_nothing_left_to_quantize() -> None:
    model = small_net()
    refuses(NothingQuantizedError, "", lambda: quantize(model, {}), model)
    refuses(NothingQuantizedError, "", lambda: quantize(model, exclude=["*"]), model)
    assert issubclass(NothingQuantizedError, ValueError) and issubclass(
        NothingQuantizedError, OctavoError
    )


# ---- what is passed as a model -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "thing", [None, nn.Linear, lambda x: x, "model.pt", Path("model.pt"), 3, torch.ones(2)]
)
def test_what_is_no_model_is_refused(thing: Any) -> None:
    refuses(TypeError, "nn.Module", lambda: quantize(thing))


def test_a_state_dict_is_refused() -> None:
    refuses(TypeError, "load", lambda: quantize(small_net().state_dict()))


def test_a_quantized_model_is_refused() -> None:
    small = quantize(small_net())
    refuses(ValueError, "already quantized(.|\n)*8", lambda: quantize(small))


def test_a_model_of_another_library_is_refused() -> None:
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)
    refuses(ValueError, "Linear(.|\n)*another library", lambda: quantize(other))


def test_a_model_without_layers_is_refused() -> None:
    model = nn.Sequential(nn.ReLU(), nn.LayerNorm(4))
    refuses(NothingQuantizedError, "ReLU|LayerNorm", lambda: quantize(model), model)
    for none in (nn.Sequential(), nn.Sequential(nn.ReLU())):
        refuses(NothingQuantizedError, "got none", lambda none=none: quantize(none), none)


def test_a_scripted_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(small_net())
    refuses(TypeError, "[Ss]cript", lambda: quantize(scripted))


def test_a_compiled_model_is_refused() -> None:
    model = small_net()
    refuses(TypeError, "_orig_mod", lambda: quantize(torch.compile(model)), model)


def test_a_wrapped_model_is_refused() -> None:
    model = small_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = nn.DataParallel(model)
    refuses(TypeError, r"\.module", lambda: quantize(wrapped), model)


def test_weights_on_the_meta_device_are_refused() -> None:
    refuses(ValueError, "meta", lambda: quantize(small_net().to("meta")))


# ---- weights and layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_float_types_of_weights_are_accepted(dtype: torch.dtype) -> None:
    model = small_net().to(dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small = quantize(model)
    x = torch.randn(*BATCH, dtype=dtype)
    assert small(x).dtype == dtype
    assert sqnr(model.double()(x.double()), small(x)) >= LAYER_SQNR[8]
    assert sum("float64" in str(w.message) for w in caught) == (dtype == torch.float64)


def test_integer_and_complex_weights_are_refused() -> None:
    for weight in (torch.ones(4, 4, dtype=torch.int32), torch.ones(4, 4, dtype=torch.complex64)):
        model = nn.Linear(4, 4)
        del model.weight
        model.weight = nn.Parameter(weight, requires_grad=False)
        refuses(TypeError, str(weight.dtype), lambda model=model: quantize(model))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    model = small_net()
    with torch.no_grad():
        model[3].weight[2, 5] = bad
        model[3].weight[3, 7] = bad
    refuses(ValueError, r"3\.weight.*2(.|\n)*\(2, 5\)", lambda: quantize(model))


@torch.no_grad()
def test_channels_of_zero_weights() -> None:
    model = small_net()
    model[0].weight[3] = 0
    model[3].weight.zero_()
    for data in (None, batches()):
        small = quantize(model, data=data)
        x = torch.randn(*BATCH)
        assert torch.allclose(small(x), model[3].bias.expand(2, 4), atol=1e-6)


@torch.no_grad()
def test_constant_or_denormal_weights() -> None:
    model = nn.Linear(16, 4)
    model.weight.fill_(0.25)
    x = torch.randn(3, 16)
    assert sqnr(model(x), quantize(model)(x)) >= LAYER_SQNR[8]
    model.weight.fill_(1e-41)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small = quantize(model)
    assert any("constant or too small" in str(w.message) for w in caught)
    assert torch.allclose(small(x), model.bias.expand(3, 4))


@torch.no_grad()
def test_huge_weights() -> None:
    model = nn.Linear(16, 4, bias=False)
    model.weight.mul_(1e37)
    x = torch.randn(3, 16) * 1e-3
    assert sqnr(model(x), quantize(model)(x)) >= LAYER_SQNR[8]


@torch.no_grad()
@pytest.mark.parametrize("largest", [3e38, torch.finfo(torch.float32).max])
def test_weights_near_the_largest_float32(largest: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
    weight = model[0].weight
    weight.div_(weight.abs().max()).mul_(largest)
    x = torch.randn(128, 64) * 1e-3
    wanted = model(x).double()
    for bits, how in (
        (8, {}),
        (8, {"data": [x]}),
        (4, {"data": [x]}),
        (4, {"data": [x], "rounding": "nearest"}),
        (4, {"data": [x], "rounding": "adaround"}),
        (4, {"data": [x], "effort": "best"}),
    ):
        error = quantize(model, bits, **how)(x).double() - wanted
        assert float(error.norm() / wanted.norm()) < (0.02 if bits == 8 else 0.1), (bits, how)
    for how in ({}, {"group_size": 32}, {"symmetric": False}, {"grid": "kmeans"}):
        with pytest.raises(
            ValueError, match=r"layer '0': weights whose sums .* Divide the weights"
        ):
            quantize(model, 4, **how)


@torch.no_grad()
def test_parametrized_weights() -> None:
    for wrap in (
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ):
        model = nn.Sequential(wrap(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 4)).eval()
        x = torch.randn(5, 16)
        expected = model(x)
        small = quantize(model)
        assert rows_of(small)["0"].bits == 8
        assert sqnr(expected, small(x)) >= LAYER_SQNR[8]
        assert hasattr(model[0], "parametrizations"), "the input model was changed"


@torch.no_grad()
def test_old_weight_norm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv1d(3, 8, 3)), nn.ReLU())
    x = torch.randn(2, 3, 9)
    expected = model(x)
    small = quantize(model)
    assert rows_of(small)["0"].bits == 8
    assert sqnr(expected, small(x)) >= LAYER_SQNR[8]


def test_impossible_convolutions() -> None:
    for name, value, text in (
        ("stride", (0, 1), "stride"),
        ("dilation", (0, 0), "dilation"),
        ("groups", 5, "groups"),
    ):
        model = small_net()
        setattr(model[0], name, value)
        refuses(ValueError, f"'0'(.|\n)*{text}", lambda model=model: quantize(model))


def test_lazy_layers_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    refuses(ValueError, "one forward", lambda: quantize(model))


@torch.no_grad()
def test_empty_layers_and_inputs() -> None:
    for inputs, outputs in ((0, 4), (4, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())
        small = quantize(nn.Sequential(nn.Linear(inputs, inputs or 4), model) if inputs else model)
        assert small(torch.randn(3, inputs)).shape == (3, outputs)


@torch.no_grad()
def test_long_sums() -> None:
    """K = 66,000 of the largest codes: 255 x 127 x 66,000 = 2,137,410,000 does not fit 31 bits with zero points."""
    model = nn.Linear(140_000, 2, bias=False)
    model.weight.fill_(1.0)
    small = quantize(model)
    for sign in (1.0, -1.0):
        x = torch.full((2, 140_000), sign)
        assert torch.allclose(small(x), model(x), rtol=1e-2)


# ---- data and arguments -----------------------------------------------------------------------------------


@torch.no_grad()
def test_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.9), nn.Flatten())
    model.train()
    mean = model[1].running_mean.clone()
    small = quantize(model, data=batches())
    assert model.training and all(m.training for m in model.modules())
    assert torch.equal(model[1].running_mean, mean), "calibration must not move statistics"
    x = torch.randn(*BATCH)
    assert sqnr(copy.deepcopy(model).eval()(x), small(x)) >= LAYER_SQNR[8]


@pytest.mark.parametrize("data", [[], (), iter(())])
def test_no_batches_are_refused(data: Any) -> None:
    model = small_net()
    refuses(ValueError, "0 batches|no batch", lambda: quantize(model, data=data), model)


@torch.no_grad()
def test_one_shot_iterator() -> None:
    model = small_net()
    torch.manual_seed(3)
    data = batches()
    a, b = quantize(model, data=data), quantize(model, data=(x for x in data))
    x = torch.randn(*BATCH)
    assert torch.equal(a(x), b(x))


@torch.no_grad()
def test_forms_of_batches() -> None:
    model = small_net()
    data = batches()
    x = torch.randn(*BATCH)
    expected = quantize(model, data=data)(x)
    labels = torch.zeros(2, dtype=torch.long)
    forms: list[Any] = [
        [(b,) for b in data],
        [[b, labels] for b in data],
        [{"input": b} for b in data],
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat(data), torch.zeros(6)), batch_size=2
        ),
    ]
    for form in forms:
        assert torch.equal(quantize(model, data=form)(x), expected)
    # A callable may run the model in any way, so bias correction cannot go batch by batch as above.
    by_callable = quantize(model, data=lambda m: [m(b) for b in data])(x)
    assert sqnr(expected, by_callable) >= 40
    for wrong in ([{"image": data[0]}], [3], ["images"]):
        refuses(TypeError, "input", lambda wrong=wrong: quantize(model, data=wrong), model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_batches_that_are_not_finite_are_refused(bad: float) -> None:
    model = small_net()
    data = batches()
    data[1][0, 0, 0, 0] = bad
    refuses(ValueError, "(.|\n)*batch 1", lambda: quantize(model, data=data), model)


def test_layers_never_reached() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, other: bool = False) -> Tensor:
            return self.b(x) if other else self.a(x)

    model = Branch()
    rows = rows_of(quantize(model, data=[torch.randn(2, 4)]))
    assert "never reached" in rows["b"].reason and rows["b"].activations == "dynamic"
    assert rows["a"].activations == "static"
    refuses(CalibrationError, "", lambda: quantize(model, data=lambda m: None), model)
    assert issubclass(CalibrationError, ValueError)


@torch.no_grad()
def test_constant_calibration_data_keeps_outputs_finite() -> None:
    model = small_net()
    for value in (0.0, 2.0):
        small = quantize(model, data=[torch.full(BATCH, value)])
        assert bool(small(torch.randn(*BATCH)).isfinite().all())


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
def test_exceptions_in_calibration_leave_the_model_as_it_was(error: BaseException) -> None:
    model = small_net()

    def data() -> Iterator[Tensor]:
        yield torch.randn(*BATCH)
        raise error

    hooks = {id(m): (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()}
    with pytest.raises(type(error)):
        quantize(model, data=data())

    def run(m: nn.Module) -> None:
        m(torch.randn(*BATCH))
        raise error

    before = state_bytes(model)
    with pytest.raises(type(error)) as info:
        quantize(model, data=run)
    assert info.value is error
    assert state_bytes(model) == before
    assert hooks == {
        id(m): (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    }
    assert not any("forward" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("size", [0, -1, 24])
def test_group_size_out_of_range(size: int) -> None:
    model = small_net()
    refuses(
        ValueError,
        f"16(.|\n)*{size}|{size}(.|\n)*16",
        lambda: quantize(model, group_size=size),
        model,
    )


@pytest.mark.parametrize("axis", [5, -5, 2**40])
def test_axis_out_of_range(axis: int) -> None:
    with pytest.raises(ValueError, match="axis"):
        octavo.ops.quantize_per_channel(torch.randn(3, 4), torch.ones(3), axis, -127, 127)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-45])
def test_scale_out_of_range(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        octavo.ops.quantize(torch.randn(4), scale, 0, 255)
    scales = torch.tensor([1.0, scale, 1.0])
    with pytest.raises(ValueError, match=r"scale(.|\n)*1"):
        octavo.ops.quantize_per_channel(torch.randn(3, 4), scales, 0, -127, 127)


def test_scale_tensor_out_of_range() -> None:
    for scales in (torch.ones(2), torch.ones(3, dtype=torch.float64), torch.ones(3, 1)):
        with pytest.raises((ValueError, TypeError), match="scale"):
            octavo.ops.quantize_per_channel(torch.randn(3, 4), scales, 0, -127, 127)


@pytest.mark.parametrize("zero", [300, -129, 2**40])
def test_zero_point_out_of_range(zero: int) -> None:
    with pytest.raises(ValueError, match="zero_point(.|\n)*255"):
        octavo.ops.quantize(torch.randn(4), 1.0, zero, 255)


def test_zero_point_of_wrong_type() -> None:
    with pytest.raises((TypeError, ValueError), match="zero_point"):
        octavo.ops.quantize(torch.randn(4), 1.0, 1.5, 255)  # type: ignore[arg-type]


@pytest.mark.parametrize("low, high", [(5, 5), (6, 5), (-300, 5), (0, 300)])
def test_code_range_out_of_range(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="qmin|qmax"):
        octavo.ops.quantize_per_channel(torch.randn(3, 4), torch.ones(3), 0, low, high)


def test_misspelled_argument() -> None:
    model = small_net()
    refuses(
        TypeError,
        "did you mean 'bits'|Did you mean 'bits'",
        lambda: octavo.quantize(model, bit=8),
        model,
    )


def test_inference_model_in_place() -> None:
    with torch.inference_mode():
        model = small_net()
    refuses(ValueError, "inference", lambda: quantize(model, inplace=True))


# ---- tensors given to quantized models -------------------------------------------------------------------


@pytest.fixture(params=["dynamic", "static"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    static = request.param == "static"
    linear = quantize(nn.Linear(16, 4), data=[torch.randn(8, 16)] if static else None)
    conv = quantize(nn.Conv2d(3, 4, 3), data=[torch.randn(2, 3, 8, 8)] if static else None)
    return linear, conv


def test_inputs_of_wrong_shape_or_type(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, conv = pair
    state = state_bytes(linear)
    refuses(ValueError, "16(.|\n)*15", lambda: linear(torch.randn(2, 15)))
    refuses(ValueError, "3(.|\n)*4", lambda: conv(torch.randn(2, 4, 8, 8)))
    assert conv(torch.randn(3, 8, 8)).shape == (4, 6, 6)
    refuses(ValueError, "", lambda: linear(torch.tensor(1.0)))
    refuses(ValueError, "", lambda: conv(torch.tensor(1.0)))
    assert linear(torch.randn(0, 16)).shape == (0, 4)
    assert conv(torch.randn(0, 3, 8, 8)).shape == (0, 4, 6, 6)
    refuses((ValueError, RuntimeError), "[Kk]ernel", lambda: conv(torch.randn(1, 3, 2, 8)))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        refuses(
            TypeError,
            r"\.float\(\)|float",
            lambda dtype=dtype: linear(torch.ones(2, 16, dtype=dtype)),
        )
        refuses(TypeError, "float", lambda dtype=dtype: conv(torch.ones(2, 3, 8, 8, dtype=dtype)))
    assert state_bytes(linear) == state


@torch.no_grad()
def test_inputs_of_other_float_types(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, conv = pair
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x, image = torch.randn(2, 16).to(dtype), torch.randn(2, 3, 8, 8).to(dtype)
        assert torch.equal(linear(x), linear(x.float()).to(dtype))
        assert torch.equal(conv(image), conv(image.float()).to(dtype))


def test_sparse_and_other_layouts_are_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, _ = pair
    for x in (torch.eye(16).to_sparse(), torch.randn(2, 16).to("meta"), torch.eye(16).to_mkldnn()):
        with pytest.raises(TypeError, match=r"sparse|meta|mkldnn|dense"):
            linear(x)


def test_inputs_that_are_no_tensors(pair: tuple[nn.Module, nn.Module]) -> None:
    for layer in pair:
        for thing in (np.zeros((2, 16), np.float32), [[0.0] * 16], torch.Size([2, 16]), None):
            with pytest.raises(TypeError, match="[Tt]ensor"):
                layer(thing)


@torch.no_grad()
def test_inputs_with_nan_infinity_and_denormals() -> None:
    q = octavo.ops.quantize(
        torch.tensor(
            [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 1e-42, -0.0, 0.5, 1.5]
        ),
        1.0,
        7,
        255,
    )
    assert q.tolist() == [0, 255, 0, 255, 0, 7, 7, 7, 9]


def test_backward_through_integers_is_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, conv = pair
    for layer, x in ((linear, torch.randn(2, 16)), (conv, torch.randn(2, 3, 8, 8))):
        y = layer(x.requires_grad_())
        assert y.requires_grad, "silence here would mean gradients that are None"
        with pytest.raises(RuntimeError, match="qat=True"):
            y.sum().backward()


def test_backward_through_a_region_is_refused() -> None:
    small = quantize(small_net(), data=batches())
    y = small(torch.randn(*BATCH).requires_grad_())
    with pytest.raises(RuntimeError, match="qat=True"):
        y.sum().backward()


def test_gradient_and_autocast_modes_change_nothing(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, _ = pair
    x = torch.randn(2, 16)
    expected = linear(x)
    with torch.no_grad():
        assert torch.equal(linear(x), expected)
    with torch.inference_mode():
        assert torch.equal(linear(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x).float(), expected) or linear(x).dtype == torch.bfloat16


@torch.no_grad()
def test_half_after_quantizing(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, _ = pair
    x = torch.randn(2, 16)
    expected, scale = linear(x), linear.weight_scale.clone()
    moved = copy.deepcopy(linear).half()
    assert moved.weight_scale.dtype == torch.float32 and torch.equal(moved.weight_scale, scale)
    assert torch.equal(moved(x), expected)


def test_another_device_is_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, _ = pair
    with pytest.raises(RuntimeError, match="CPU"):
        linear.to("meta")


def test_weight_is_computed(pair: tuple[nn.Module, nn.Module]) -> None:
    linear, _ = pair
    assert linear.weight.shape == (4, 16) and linear.weight.dtype == torch.float32
    with pytest.raises(AttributeError, match="weight"):
        linear.weight = nn.Parameter(torch.zeros(4, 16))
    with pytest.raises(AttributeError, match="weight"):
        del linear.weight


# ---- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        octavo.save(quantize(small_net(), data=batches()), path)
    return path


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(path: Path, header: dict[str, Any] | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refused(path: Any, text: str = "", error: Any = CheckpointError) -> None:
    model = small_net()
    refuses(error, text, lambda: octavo.load(path, model), model)


def test_paths_that_are_no_regular_files(tmp_path: Path, saved: Path) -> None:
    refused(tmp_path / "missing.safetensors", "missing.safetensors", OSError)
    refused(tmp_path, "", (OSError, ValueError))
    refused("", "", (OSError, ValueError))
    refused("a\0b", "", (OSError, ValueError))
    refused("x" * 5000, "", (OSError, ValueError))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    refused(fifo, "", (OSError, ValueError))  # and does not hang
    refused("/dev/zero", "", (OSError, ValueError))
    link = tmp_path / "link"
    link.symlink_to(saved)
    octavo.load(link, small_net())


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_files_too_short_for_a_header(size: int, tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(saved.read_bytes()[:size])
    refused(path, "short|small|bytes")


@pytest.mark.parametrize("size", [0, 1, 2**63, 2**64 - 1, 10**7])
def test_header_size_out_of_range(size: int, tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "size"
    path.write_bytes(struct.pack("<Q", size) + saved.read_bytes()[8:])
    refused(path, str(size))


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b'{"a": "\xff\xfe"}',
        b'{"a": ',
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{}{"b": 1}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b'{"a": NaN}',
        b'{"a": 1.0}',
        b'{"a": -1}',
        b'{"a": Infinity}',
        b"{}" + b" " * 100,
    ],
    ids=lambda h: h[:20].decode("latin1"),
)
def test_malformed_header(header: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "bad", header, b""))


def test_a_header_of_twenty_megabytes_of_spaces(tmp_path: Path) -> None:
    refused(write(tmp_path / "spaces", b"{}" + b" " * 20_000_000, b""))


def edited(path: Path, saved: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    header, data = split(saved)
    edit(header)
    return write(path, header, data)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return header[next(k for k in header if k != "__metadata__")]


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "79 metadata not strings": lambda h: h["__metadata__"].update(extra=3),
    "79 metadata not an object": lambda h: h.update(__metadata__=[1]),
    "80 huge shape": lambda h: _first(h).update(shape=[2**40, 2**40]),
    "80 negative shape": lambda h: _first(h).update(shape=[-1]),
    "80 float shape": lambda h: _first(h).update(shape=[1.0]),
    "80 text shape": lambda h: _first(h).update(shape=["3"]),
    "80 rank 1000": lambda h: _first(h).update(shape=[1] * 1000),
    "81 overflowing empty shape": lambda h: _first(h).update(shape=[0, 2**63 - 1, 4]),
    "82 reversed offsets": lambda h: _first(h).update(data_offsets=_first(h)["data_offsets"][::-1]),
    "82 past the end": lambda h: _first(h).update(data_offsets=[0, 2**50]),
    "82 not integers": lambda h: _first(h).update(data_offsets=["0", "4"]),
    "82 three offsets": lambda h: _first(h).update(data_offsets=[0, 1, 2]),
    "82 overlap": lambda h: [
        t.update(data_offsets=[0, t["data_offsets"][1] - t["data_offsets"][0]])
        for k, t in h.items()
        if k != "__metadata__"
    ],
    "83 unknown dtype": lambda h: _first(h).update(dtype="F99"),
    "83 lower-case dtype": lambda h: _first(h).update(dtype=_first(h)["dtype"].lower()),
    "83 extra field": lambda h: _first(h).update(device="cuda"),
    "L3 name with dots": lambda h: h.update(
        {"../x": h.pop(next(k for k in h if k != "__metadata__"))}
    ),
    "L3 name with control character": lambda h: h.update(
        {"a\x01b": h.pop(next(k for k in h if k != "__metadata__"))}
    ),
    "L3 long name": lambda h: h.update(
        {"n" * 2000: h.pop(next(k for k in h if k != "__metadata__"))}
    ),
    "missing tensor": lambda h: h.pop(next(k for k in h if k != "__metadata__")),
    "no metadata": lambda h: h.pop("__metadata__"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_header(name: str, tmp_path: Path, saved: Path) -> None:
    refused(edited(tmp_path / "edited", saved, EDITS[name]))


def test_bytes_after_the_end(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "polyglot"
    path.write_bytes(saved.read_bytes() + b"PK\x03\x04")
    refused(path)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/octavo-pickle-ran",)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    import pickle

    canary = Path("/tmp/octavo-pickle-ran")
    canary.unlink(missing_ok=True)
    plain, archive = tmp_path / "a.pkl", tmp_path / "a.pt"
    plain.write_bytes(pickle.dumps(_Bomb()))
    torch.save({"a": torch.ones(3)}, archive)
    for path in (plain, archive):
        refused(path, "pickle")
    assert not canary.exists()


@pytest.mark.parametrize(
    "magic, name",
    [
        (b"GGUF\x03\0\0\0" + b"\0" * 40, "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
        (b"\x1f\x8b\x08\0" + b"\0" * 40, "gzip"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "[Ll][Ff][Ss]"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + b"\0" * 40, "ONNX"),
    ],
    ids=["gguf", "hdf5", "gzip", "html", "lfs", "onnx"],
)
def test_other_formats_are_named(magic: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(magic)
    refused(path, name)


def test_a_float_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(small_net().state_dict(), tmp_path / "float.safetensors")
    refused(tmp_path / "float.safetensors", "quantiz")


def test_a_file_of_another_architecture(saved: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    refuses(CheckpointError, "0", lambda: octavo.load(saved, model), model)


def test_a_file_of_other_shapes(saved: Path) -> None:
    model = small_net()
    model[0] = nn.Conv2d(3, 16, 3)
    refuses(CheckpointError, r"'?0'?(.|\n)*(8|16)", lambda: octavo.load(saved, model), model)


def tampered(
    path: Path, saved: Path, edit: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> Path:
    """A file with a right digest and other content: what a careful stranger would send."""
    from octavo.checkpoint import safetensors_file

    tensors, metadata = safetensors_file.read(saved)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    metadata = {k: v for k, v in metadata.items() if k != "sha256"}
    edit(tensors, metadata)
    safetensors_file.write(path, tensors, metadata)
    return path


def test_tampering_itself_is_sound(tmp_path: Path, saved: Path) -> None:
    octavo.load(tampered(tmp_path / "same", saved, lambda t, m: None), small_net())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0, 1e-42, -1e-42])
def test_a_file_with_a_bad_scale(value: float, tmp_path: Path, saved: Path) -> None:
    def edit(tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        tensors["0.weight_scale"][1] = value

    refused(tampered(tmp_path / "scale", saved, edit), "scale(.|\n)*1")


def model_edit(old: str, new: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        assert old in metadata["model"], (old, metadata["model"][:2000])
        metadata["model"] = metadata["model"].replace(old, new, 1)

    return edit


TAMPERED: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "91 scale too short": lambda t, m: t.update({"0.weight_scale": t["0.weight_scale"][:3]}),
    "91 scale of another type": lambda t, m: t.update(
        {"0.weight_scale": t["0.weight_scale"].double()}
    ),
    "91 codes too short": lambda t, m: t.update({"0.weight_packed": t["0.weight_packed"][:, :-1]}),
    "91 codes of another type": lambda t, m: t.update(
        {"0.weight_packed": t["0.weight_packed"].float()}
    ),
    "91 code -128": lambda t, m: t["0.weight_packed"].fill_(0x80),
    "91 bias not finite": lambda t, m: t["0.bias"].fill_(float("nan")),
    "95 bits 9": model_edit('"bits":8', '"bits":9'),
    "95 bits true": model_edit('"bits":8', '"bits":true'),
    "95 grid": model_edit('"grid":"linear"', '"grid":"os.system"'),
    "95 class": model_edit('"type":"QConv2d"', '"type":"os.system"'),
    "95 not JSON": lambda t, m: m.update(model="{"),
    "95 list": lambda t, m: m.update(model="[]"),
    "95 deep": lambda t, m: m.update(model="[" * 100_000),
    "program of another version": model_edit("octavo.region 1", "octavo.region 2"),
    "program without a step": model_edit("conv x=0", "conv x=7"),
    "program with more channels": model_edit("channels=8", "channels=9999"),
    "program with zero stride": model_edit("stride=1,1", "stride=0,0"),
    "program with scale 0": lambda t, m: m.update(
        model=re.sub(r"layout=image s=\S+", "layout=image s=0x0p+0", m["model"], count=1)
    ),
    "extra tensor": lambda t, m: t.update(extra=torch.zeros(3)),
}


@torch.no_grad()
def test_a_program_that_does_not_fit_its_layers(tmp_path: Path, saved: Path) -> None:
    """Refused by the loader, or at the latest by the first call: never a crash, never numbers."""
    for old, new in (
        ("kernel=3,3", "kernel=3,99999999"),
        ("kernel=3,3", "kernel=1,9"),
        ("pad=0,0,0,0", "pad=99999999,0,0,0"),
        ("dilation=1,1", "dilation=1,2147483647"),
    ):
        path = tampered(tmp_path / "tampered", saved, model_edit(old, new))
        with pytest.raises((CheckpointError, RuntimeError, ValueError)):
            octavo.load(path, small_net())(torch.randn(*BATCH))


@pytest.mark.parametrize("name", TAMPERED)
def test_a_file_with_tampered_content(name: str, tmp_path: Path, saved: Path) -> None:
    refused(tampered(tmp_path / "tampered", saved, TAMPERED[name]))


def test_a_digest_that_does_not_fit(tmp_path: Path, saved: Path) -> None:
    header, data = split(saved)
    raw = bytearray(data)
    raw[len(raw) // 2] ^= 1
    refused(write(tmp_path / "flipped", header, bytes(raw)), "damaged|digest|SHA")


def test_a_file_of_a_newer_version(tmp_path: Path, saved: Path) -> None:
    newer = tampered(tmp_path / "newer", saved, lambda t, m: m.update(version="99.0"))
    refused(newer, r"1\.(.|\n)*99")
    minor = tampered(
        tmp_path / "minor", saved, lambda t, m: m.update(version="1.7", note="unknown")
    )
    octavo.load(minor, small_net())


def test_too_many_tensors(tmp_path: Path) -> None:
    entry = '"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(entry % i for i in range(250_000)) + "}"
    refused(write(tmp_path / "many", header.encode(), b""))


def test_paths_that_cannot_be_saved_to(tmp_path: Path, saved: Path) -> None:
    small = quantize(small_net(), data=batches())
    target = tmp_path / "net.safetensors"
    octavo.save(small, target)
    old = target.read_bytes()
    with pytest.raises(OSError, match="nowhere"):
        octavo.save(small, tmp_path / "nowhere" / "net.safetensors")
    with pytest.raises(OSError):
        octavo.save(small, tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises((OSError, ValueError)):
        octavo.save(small, fifo)
    with pytest.raises((OSError, ValueError)):
        octavo.save(small, "/dev/full")
    for wrong in (small_net(), None, 3):
        with pytest.raises((TypeError, ValueError)):
            octavo.save(wrong, target)  # type: ignore[arg-type]
    assert target.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "net.safetensors"]


# ---- environment -----------------------------------------------------------------------------------------


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("word", ["avx99", "avx2,scalar", "best"])
def test_unknown_isa(word: str) -> None:
    result = child("import octavo", OCTAVO_ISA=word)
    assert result.returncode == 1
    assert "ImportError" in result.stderr and word in result.stderr and "scalar" in result.stderr


def test_forms_of_the_name_of_an_isa() -> None:
    for word in (" SCALAR ", "scalar", "Scalar"):
        result = child("import octavo; print(octavo.isa())", OCTAVO_ISA=word)
        assert result.stdout.strip() == "scalar", result.stderr
    result = child("import octavo; print(octavo.isa())", OCTAVO_ISA="")
    assert result.stdout.strip() == octavo.isas()[0] or result.stdout.strip() in octavo.isas()


def test_absent_isa() -> None:
    absent = [i for i in ("amx_int8", "neon_dotprod", "avx_vnni") if i not in octavo.isas()]
    assert absent, "no machine has all of them"
    for name in absent:
        result = child("import octavo", OCTAVO_ISA=name)
        assert result.returncode == 1, "no signal, no silent fallback"
        assert name in result.stderr and "Error" in result.stderr
        with pytest.raises((ValueError, RuntimeError), match=name):
            octavo.set_isa(name)
    with pytest.raises(ValueError, match="scalar"):
        octavo.set_isa("avx99")


@pytest.mark.parametrize("value", ["0", "-1", "abc", "100000"])
def test_strange_thread_settings(value: str) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch, octavo\n"
        "torch.manual_seed(0)\n"
        "m = octavo.quantize(torch.nn.Linear(64, 64), 8, progress=False)\n"
        "import hashlib\n"
        "print(hashlib.sha256(m(torch.randn(32, 64)).detach().numpy().tobytes()).hexdigest())\n"
    )
    reference = child(code, OMP_NUM_THREADS="1")
    assert reference.returncode == 0, reference.stderr
    result = child(code, OMP_NUM_THREADS=value)
    if value == "100000" and result.returncode != 0:
        pytest.skip("libgomp cannot start that many threads here, whoever asks")
    assert result.returncode == 0, result.stderr
    assert result.stdout == reference.stdout


def test_checks_hold_in_optimized_python() -> None:
    code = (
        "import octavo, torch\n"
        "try: octavo.quantize(torch.nn.Linear(4, 4), 9)\n"
        "except ValueError as e: print('refused', e)\n"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    result = subprocess.run(
        [sys.executable, "-O", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.stdout.startswith("refused"), result.stderr


def teardown_module() -> None:
    gc.collect()
