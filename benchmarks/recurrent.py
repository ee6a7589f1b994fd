"""Recurrent networks: octavo at 8, 4, 3 and 2 bits beside torch, torch.ao, onnxruntime and OpenVINO.

One level in one direction over 50 times, batches first, one thread. Engines are called in turn, in rounds; the table
holds the fastest call of all rounds in ms, and the ratio of octavo's 8 bits to the best peer.

    python benchmarks/recurrent.py                    # LSTM and GRU, four sizes
    python benchmarks/recurrent.py --kinds LSTM --sizes 512,1 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

import octavo

Call = Callable[[], Any]
TIMES = 50
#: Hidden units (and inputs), sequences.
SIZES = ((256, 1), (512, 1), (1024, 1), (512, 16))
#: Gates as torch orders them, in the order of ONNX.
ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def torch_calls(network: nn.Module, x: torch.Tensor) -> dict[str, Call]:
    """octavo, the float network, and torch.ao's dynamic layers."""
    from torch.ao.quantization import quantize_dynamic

    calls: dict[str, Call] = {}
    for bits in (8, 4, 3, 2):
        small = octavo.quantize(network, bits, progress=False)
        calls[f"octavo {bits}"] = lambda small=small: small(x)
    calls["torch"] = lambda: network(x)
    peer = quantize_dynamic(nn.Sequential(network), {type(network)}, dtype=torch.qint8)
    calls["torch.ao"] = lambda: peer(x)
    return calls


def onnx_model(network: nn.Module, x: torch.Tensor) -> Any:
    """The network as one node, time first."""
    from onnx import TensorProto, helper, numpy_helper

    kind, hidden = type(network).__name__, network.hidden_size
    order = ONNX_GATES[kind]

    def ordered(tensor: torch.Tensor) -> np.ndarray:
        parts = tensor.detach().chunk(len(order))
        return torch.cat([parts[i] for i in order])[None].numpy()

    bias = torch.cat(
        [torch.from_numpy(ordered(b))[0] for b in (network.bias_ih_l0, network.bias_hh_l0)]
    )
    weights = {
        "w": ordered(network.weight_ih_l0),
        "r": ordered(network.weight_hh_l0),
        "b": bias[None].numpy(),
    }
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(kind, ["x", "w", "r", "b"], ["y"], hidden_size=hidden, **options)
    graph = helper.make_graph(
        [node],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [TIMES, x.shape[0], x.shape[2]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [TIMES, 1, x.shape[0], hidden])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def onnxruntime_calls(network: nn.Module, x: torch.Tensor) -> dict[str, Call]:
    """Float, and its dynamic int8 form, which there is for LSTM alone."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    feed = {"x": x.transpose(0, 1).contiguous().numpy()}
    calls: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(onnx_model(network, x), path)
        paths = {"onnxruntime": path}
        if type(network) is nn.LSTM:
            quantize_dynamic(path, small, weight_type=QuantType.QInt8, per_channel=True)
            paths["onnxruntime int8"] = small
        for name, file in paths.items():
            session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
            calls[name] = lambda session=session: session.run(None, feed)
    return calls


def openvino_calls(network: nn.Module, x: torch.Tensor) -> dict[str, Call]:
    """Float and bfloat16: NNCF leaves weights of recurrent layers as they are."""
    import openvino

    core = openvino.Core()
    model = core.read_model(onnx_model(network, x).SerializeToString(), b"")
    calls: dict[str, Call] = {}
    for name, precision in (("OpenVINO", "f32"), ("OpenVINO bf16", "bf16")):
        options = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(model, "CPU", options).create_infer_request()
        feed = x.transpose(0, 1).contiguous().numpy()
        calls[name] = lambda request=request, feed=feed: request.infer(
            [feed], share_inputs=True, share_outputs=True
        )
    return calls


def check(name: str, result: Any, wanted: torch.Tensor) -> None:
    """Fails where an engine computes something else."""
    if isinstance(result, tuple):
        got = result[0]
    else:
        got = torch.from_numpy(np.array(result[0]))[:, 0].transpose(0, 1)
    error = float((got - wanted).norm() / wanted.norm())
    most = 0.6 if name == "octavo 2" else 0.3 if name == "octavo 3" else 0.15
    assert error < most, f"{name}: relative error {error}"


def time_in_turn(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Fastest call in ms: each turn warms up twice and then calls for 0.1 s."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            call = calls[name]
            call()
            call()
            end = time.perf_counter() + 0.1
            while (start := time.perf_counter()) < end:
                call()
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: 1e3 * seconds for name, seconds in best.items()}


@torch.inference_mode()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["LSTM", "GRU"], choices=["LSTM", "GRU"])
    parser.add_argument(
        "--sizes", nargs="+", default=[f"{h},{b}" for h, b in SIZES], help="hidden units, sequences"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, octavo {octavo.isa()}, {TIMES} times, 1 thread, ms")
    for kind in arguments.kinds:
        for size in arguments.sizes:
            hidden, sequences = map(int, size.split(","))
            torch.manual_seed(0)
            network = getattr(nn, kind)(hidden, hidden, batch_first=True).eval()
            x = torch.randn(sequences, TIMES, hidden)
            calls: dict[str, Call] = {}
            for engine in (torch_calls, onnxruntime_calls, openvino_calls):
                try:
                    calls |= engine(network, x)
                except ImportError as error:
                    print(f"  {engine.__name__}: {error}")
            wanted = network(x)[0]
            for name, call in calls.items():
                check(name, call(), wanted)
            best = time_in_turn(calls, arguments.rounds)
            peers = [ms for name, ms in best.items() if not name.startswith("octavo")]
            ratio = best["octavo 8"] / min(peers)
            print(
                f"{kind} {hidden}, {sequences} sequences: best peer takes {1 / ratio:.2f} times octavo's 8 bits"
            )
            print("  " + ", ".join(f"{name} {ms:.2f}" for name, ms in best.items()), flush=True)


if __name__ == "__main__":
    main()
