"""The engines that models.py compares, and the worker process that builds and times them.

Every engine gets the same float model, the same calibration images and the same input, and is asked for
logits as float32. A worker reads commands (one JSON object a line) from its standard input and answers on
its standard output, so that engines whose thread runtimes want different settings live in different
processes and are still timed in turn, in one run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Infer = Callable[[], Any]

# Which worker an engine lives in: OMP_PROC_BIND suits torch's OpenMP pool and starves the pools of the others.
GROUPS = {
    "octavo": "openmp",
    "torch_fp32": "openmp",
    "torch_fp32_compiled": "openmp",
    "torch_bf16": "openmp",
    "torch_ao_x86": "openmp",
    "onnxruntime_int8": "own_pool",
    "openvino_int8": "own_pool",
    "openvino_bf16": "own_pool",
}
ENGINES = tuple(GROUPS)


def images(count: int, size: int, seed: int) -> Any:
    """Returns smooth pseudo-random images, float32 [count, 3, size, size], normalised as for ImageNet."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 3, size, size)
    for grid, weight in ((4, 1.0), (16, 0.6), (64, 0.35)):
        noise = torch.randn(count, 3, grid, grid, generator=generator)
        x += weight * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return x.clamp(-2.1, 2.6).contiguous()


def float_model(name: str) -> Any:
    """Returns the seeded torchvision model with real BatchNorm statistics, in eval mode.

    Random weights without statistics make activations explode or vanish into denormals; three
    training-mode forwards with cumulative averaging (``momentum=None``) prevent that.
    """
    import torch
    import torchvision

    torch.manual_seed(0)
    kwargs = {"init_weights": True} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(weights=None, **kwargs)
    for module in model.modules():
        # Heads that start at zero (vision transformers) would make all logits zero.
        if isinstance(module, torch.nn.Linear) and not bool(module.weight.any()):
            torch.nn.init.normal_(module.weight, std=0.02)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(images(16, 224, 1000 + seed))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def _onnx_file(model: Any, folder: Path, name: str, batch: int) -> Path:
    """Exports once per model and batch; the shape is static so that no engine pays for dynamic shapes."""
    import torch

    path = folder / f"{name}_{batch}.onnx"
    if not path.exists():
        torch.onnx.export(
            model,
            (images(batch, 224, 0),),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=["input"],
            output_names=["logits"],
            verbose=False,
        )
    return path


def _build_octavo(model: Any, x: Any, calibration: Any, folder: Path, name: str) -> Infer:
    import octavo

    quantized = octavo.quantize(model, 8, data=list(calibration.split(8)), progress=False)
    return lambda: quantized(x)


def _build_torch_fp32(model: Any, x: Any, calibration: Any, folder: Path, name: str) -> Infer:
    import torch

    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    return lambda: model(x)


def _build_torch_fp32_compiled(
    model: Any, x: Any, calibration: Any, folder: Path, name: str
) -> Infer:
    import torch

    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, options={"freezing": True})
    return lambda: compiled(x)


def _build_torch_bf16(model: Any, x: Any, calibration: Any, folder: Path, name: str) -> Infer:
    import torch

    model = model.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    return lambda: model(x.to(torch.bfloat16)).float()


def _build_torch_ao_x86(model: Any, x: Any, calibration: Any, folder: Path, name: str) -> Infer:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    for batch in calibration.split(8):
        prepared(batch)
    quantized = convert_fx(prepared).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    return lambda: quantized(x)


def _build_onnxruntime_int8(model: Any, x: Any, calibration: Any, folder: Path, name: str) -> Infer:
    import onnxruntime as ort
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batch = x.shape[0]
    source = _onnx_file(model, folder, name, batch)
    target = folder / f"{name}_{batch}_int8.onnx"
    if not target.exists():
        prepared = folder / f"{name}_{batch}_prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                count = max(len(calibration), batch)
                rows = calibration.repeat(-(-count // len(calibration)), 1, 1, 1)[:count]
                self.batches = iter(rows[: count // batch * batch].split(batch))

            def get_next(self) -> dict[str, Any] | None:
                value = next(self.batches, None)
                return None if value is None else {"input": value.numpy()}

        quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ["BENCH_THREADS"])
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    feed = {"input": x.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(model: Any, x: Any, calibration: Any, folder: Path, name: str, int8: bool) -> Infer:
    import openvino as ov

    ir = ov.convert_model(str(_onnx_file(model, folder, name, x.shape[0])))
    if int8:
        import nncf

        count = len(calibration) // x.shape[0] * x.shape[0]
        batches = calibration[:count].split(x.shape[0]) if count else (x,)
        ir = nncf.quantize(ir, nncf.Dataset([b.numpy() for b in batches]), subset_size=len(batches))
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": int(os.environ["BENCH_THREADS"]),
        "NUM_STREAMS": 1,
    }
    if not int8:
        config["INFERENCE_PRECISION_HINT"] = "bf16"
    request = ov.Core().compile_model(ir, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return run


def _build_openvino_int8(*args: Any) -> Infer:
    return _openvino(*args, int8=True)


def _build_openvino_bf16(*args: Any) -> Infer:
    return _openvino(*args, int8=False)


def build(engine: str, model: Any, x: Any, calibration: Any, folder: Path, name: str) -> Infer:
    """Returns a function without arguments that runs `engine` once on `x`."""
    import copy

    maker = globals()["_build_" + engine]
    return maker(copy.deepcopy(model), x, calibration, folder, name)  # type: ignore[no-any-return]


def _agreement(logits: Any, expected: Any) -> float:
    """Cosine similarity of all logits to the float model's: shows that an engine computes the model at all."""
    import torch

    value = torch.as_tensor(logits).float().flatten()
    return float(torch.nn.functional.cosine_similarity(value, expected.flatten(), dim=0))


def _time(run: Infer, seconds: float) -> list[float]:
    """Seconds of single calls: two to warm up, then calls until `seconds` have passed (3 at least)."""
    run()
    run()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print; answers keep the channel to themselves
    import torch

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    folder = Path(os.environ["BENCH_FOLDER"])
    runs: dict[str, Infer] = {}
    model: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            with torch.no_grad():
                if command["do"] == "load":
                    name, batch = command["model"], command["batch"]
                    runs.clear()
                    model = torch.load(folder / f"{name}.pt", weights_only=False)
                    calibration = images(32, 224, 7)
                    x = images(batch, 224, 11)
                    expected = model(x)
                elif command["do"] == "build":
                    runs[command["engine"]] = build(
                        command["engine"], model, x, calibration, folder, name
                    )
                    answer["cosine"] = _agreement(runs[command["engine"]](), expected)
                elif command["do"] == "time":
                    answer["seconds"] = _time(runs[command["engine"]], command["seconds"])
                elif command["do"] == "isa":
                    import octavo

                    answer["isa"] = octavo.isa()
        except Exception as error:  # reported in the table, never hidden
            answer["error"] = f"{type(error).__name__}: {error}"[:300]
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve()
