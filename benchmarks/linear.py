"""One linear layer of few bits: octavo beside ggml, onnxruntime, OpenVINO, torch.ao, torchao and quanto.

All peers that are installed run in one process, in turn, on one thread, with preallocated buffers at their own
interface; octavo is timed at its operator's call. Each turn warms up twice and then calls for 50 ms; the table
holds the fastest call of all turns, and the ratio of octavo's to the best peer of the same width.

    python benchmarks/linear.py                       # six shapes, every width
    python benchmarks/linear.py --shapes 1,4096,4096 --bits 4 --rounds 5
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import octavo
from octavo import ops

Call = Callable[[], Any]
SHAPES = (
    (1, 768, 768),
    (1, 4096, 4096),
    (4, 4096, 4096),
    (16, 4096, 4096),
    (128, 768, 3072),
    (128, 4096, 4096),
)
GROUP = 128


# ---- octavo ------------------------------------------------------------------------------------------------------


def octavo_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    """Linear and level-table products; 8 bits per channel too."""
    x = torch.randn(m, k)
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    calls: dict[str, Call] = {}
    for group in (GROUP, 32):
        scale = (torch.rand(n, k // group) * 0.01 + 1e-3).bfloat16().float()
        packed = ops.pack_lowbit(codes, scale, bits, group)
        calls[f"octavo g{group}"] = lambda packed=packed: ops.linear_lowbit(x, packed, n)
        if group == GROUP and bits <= 4:
            levels = torch.randint(-127, 128, (-(-n // 64), 2**bits), dtype=torch.int8)
            table = ops.pack_lowbit(codes, scale, bits, group, levels=levels)
            calls["octavo levels g128"] = lambda table=table: ops.linear_lowbit(x, table, n)
    if bits < 8:
        whole = ops.pack_lowbit(codes, torch.rand(n, 1) * 0.01 + 1e-3, bits, 0)
        calls["octavo channel"] = lambda: ops.linear_lowbit(x, whole, n)
    else:
        signed = (codes.int() - 128).clamp(-127).to(torch.int8)
        panel = ops.pack_weight(signed, torch.rand(n) * 0.01 + 1e-3, None, 1, 8)
        calls["octavo channel"] = lambda: ops.linear_dynamic(x, panel, n)
    return calls


# ---- ggml, through the libraries of llama-cpp-python -------------------------------------------------------------

GGML_TYPES = {8: {"Q8_0": 8}, 4: {"Q4_0": 2, "Q4_K": 12}, 3: {"Q3_K": 11}, 2: {"Q2_K": 10}}


class _InitParams(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """The few functions of ggml that one matrix product needs."""

    def __init__(self) -> None:
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for name, result, arguments in (
            ("ggml_init", pointer, [_InitParams]),
            ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, number, number]),
            ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
            ("ggml_new_graph", pointer, [pointer]),
            ("ggml_build_forward_expand", None, [pointer, pointer]),
            ("ggml_row_size", ctypes.c_size_t, [ctypes.c_int, number]),
            (
                "ggml_quantize_chunk",
                ctypes.c_size_t,
                [ctypes.c_int, pointer, pointer, number, number, number, pointer],
            ),
            ("ggml_backend_alloc_ctx_tensors", pointer, [pointer, pointer]),
            ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, [pointer, pointer]),
            ("ggml_backend_tensor_set", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
            ("ggml_backend_tensor_get", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
            ("ggml_backend_graph_compute", ctypes.c_int, [pointer, pointer]),
            ("ggml_backend_reg_dev_get", pointer, [pointer, ctypes.c_size_t]),
            ("ggml_backend_reg_get_proc_address", pointer, [pointer, ctypes.c_char_p]),
            ("ggml_backend_buft_alloc_buffer", pointer, [pointer, ctypes.c_size_t]),
            ("ggml_backend_buft_name", ctypes.c_char_p, [pointer]),
            ("ggml_backend_dev_supports_op", ctypes.c_bool, [pointer, pointer]),
        ):
            function = getattr(self.base, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_backend_cpu_init.restype = pointer
        self.cpu.ggml_backend_cpu_reg.restype = pointer
        self.cpu.ggml_backend_cpu_set_n_threads.argtypes = [pointer, ctypes.c_int]
        self.backend = self.cpu.ggml_backend_cpu_init()
        self.cpu.ggml_backend_cpu_set_n_threads(self.backend, 1)
        registry = self.cpu.ggml_backend_cpu_reg()
        self.device = self.base.ggml_backend_reg_dev_get(registry, 0)
        address = self.base.ggml_backend_reg_get_proc_address(
            registry, b"ggml_backend_dev_get_extra_bufts"
        )
        self.buffer_types: list[int] = []
        if address:
            listing = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(address)(self.device)
            while listing and listing[len(self.buffer_types)]:
                self.buffer_types.append(listing[len(self.buffer_types)])

    def context(self) -> int:
        result: int = self.base.ggml_init(_InitParams(1 << 20, None, True))
        return result

    def call(
        self, x: np.ndarray, weight: np.ndarray, kind: int, buffer_type: int | None
    ) -> Call | None:
        """A product with `weight` quantized to `kind`, kept in the CPU's buffer or a repacking one."""
        base, (n, k), m = self.base, weight.shape, x.shape[0]
        weights, others = self.context(), self.context()
        w = base.ggml_new_tensor_2d(weights, kind, k, n)
        a = base.ggml_new_tensor_2d(others, 0, k, m)
        y = base.ggml_mul_mat(others, w, a)
        if buffer_type is None:
            assert base.ggml_backend_alloc_ctx_tensors(weights, self.backend)
        else:
            # As llama.cpp asks: whether the product could run with its weight in such a buffer.
            slot = ctypes.c_void_p.from_address(w + 8)
            slot.value = base.ggml_backend_buft_alloc_buffer(buffer_type, 0)
            supported = base.ggml_backend_dev_supports_op(self.device, y)
            slot.value = None
            if not supported or not base.ggml_backend_alloc_ctx_tensors_from_buft(
                weights, buffer_type
            ):
                return None
        assert base.ggml_backend_alloc_ctx_tensors(others, self.backend)
        packed = np.empty(base.ggml_row_size(kind, k) * n, np.uint8)
        base.ggml_quantize_chunk(kind, weight.ctypes.data, packed.ctypes.data, 0, n, k, None)
        base.ggml_backend_tensor_set(w, packed.ctypes.data, 0, packed.nbytes)
        base.ggml_backend_tensor_set(a, x.ctypes.data, 0, x.nbytes)
        graph = base.ggml_new_graph(others)
        base.ggml_build_forward_expand(graph, y)
        compute, backend = base.ggml_backend_graph_compute, self.backend
        compute(backend, graph)
        result = np.empty((m, n), np.float32)
        base.ggml_backend_tensor_get(y, result.ctypes.data, 0, result.nbytes)
        check("ggml", result, x, weight, 0.5 if kind in (10, 11) else 0.2)
        return lambda: compute(backend, graph)


def check(name: str, result: np.ndarray, x: np.ndarray, weight: np.ndarray, most: float) -> None:
    """A peer that computes something else would not be a peer."""
    exact = x @ weight.T
    error = float(np.linalg.norm(result - exact) / np.linalg.norm(exact))
    if not error < most:
        raise RuntimeError(f"{name}: expected the product, got a relative error of {error:.3f}")


@functools.cache
def ggml_library() -> Ggml:
    return Ggml()


def ggml_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    ggml = ggml_library()
    x, weight = random(m, k), random(n, k)
    calls: dict[str, Call] = {}
    for name, kind in GGML_TYPES[bits].items():
        for buffer_type in (None, *ggml.buffer_types):
            call = ggml.call(x, weight, kind, buffer_type)
            if call is not None:
                where = (
                    ""
                    if buffer_type is None
                    else " " + ggml.base.ggml_backend_buft_name(buffer_type).decode()
                )
                calls[f"ggml {name}{where}"] = call
    return calls


def random(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


# ---- onnxruntime -------------------------------------------------------------------------------------------------


def onnxruntime_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    calls: dict[str, Call] = {}
    for block in (32, 128):
        generator = np.random.default_rng(1)
        packed = generator.integers(0, 256, (n, k // block, block * bits // 8), np.uint8)
        scale = generator.random((n * k // block,), np.float32)
        node = helper.make_node(
            "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block,
            accuracy_level=4,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
            [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(scale, "s")],
        )  # fmt: skip
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
            ir_version=9,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(
            onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"]
        )
        bound = session.io_binding()
        bound.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(random(m, k)))
        bound.bind_ortvalue_output(
            "y", ort.OrtValue.ortvalue_from_numpy(np.empty((m, n), np.float32))
        )
        calls[f"onnxruntime g{block}"] = lambda session=session, bound=bound: (
            session.run_with_iobinding(bound)
        )
    return calls


# ---- OpenVINO ----------------------------------------------------------------------------------------------------


def openvino_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    import openvino as ov
    from openvino import opset13 as op

    if bits not in (4, 8):
        return {}
    calls: dict[str, Call] = {}
    core = ov.Core()
    for name, groups in (("g128", k // GROUP), ("channel", 1)):
        x = op.parameter([m, k], ov.Type.f32)
        shape = [n, groups, k // groups]
        data = np.random.default_rng(2).integers(0, 256, n * k * bits // 8, np.uint8)
        kind = ov.Type.u4 if bits == 4 else ov.Type.u8
        codes = op.convert(ov.op.Constant(ov.Tensor(data, ov.Shape(shape), kind)), "f32")
        centred = op.subtract(codes, op.constant(np.full((1, 1, 1), 2 ** (bits - 1), np.float32)))
        scale = op.constant(np.random.default_rng(3).random((n, groups, 1), np.float32))
        weight = op.reshape(op.multiply(centred, scale), op.constant([n, k]), False)
        y = op.matmul(x, weight, False, True)
        model = ov.Model([op.result(y)], [x])
        compiled = core.compile_model(
            model, "CPU",
            {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP)},
        )  # fmt: skip
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(random(m, k)))
        calls[f"openvino {name}"] = request.infer
    return calls


# ---- torch.ao, torchao, quanto -----------------------------------------------------------------------------------


def torch_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    if bits != 8:
        return {}
    x = torch.randn(m, k)
    calls: dict[str, Call] = {}
    for engine in ("onednn", "fbgemm"):
        if engine in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = engine
            model = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False)).eval()
            layer = torch.ao.quantization.quantize_dynamic(
                model, {torch.nn.Linear}, dtype=torch.qint8
            )[0]
            calls[f"torch.ao {engine}"] = lambda layer=layer: layer(x)
    return calls


def torchao_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    import torchao.quantization as q

    if bits != 8:
        return {}  # its int4 kernels take bfloat16 only, and others are emulated on this kind of CPU
    calls: dict[str, Call] = {}
    x = torch.randn(m, k)
    for name, config in (
        ("dynamic", q.Int8DynamicActivationInt8WeightConfig()),
        ("weight", q.Int8WeightOnlyConfig()),
    ):
        model = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False)).eval()
        q.quantize_(model, config)
        calls[f"torchao {name}"] = lambda layer=model[0]: layer(x)
    return calls


def quanto_calls(m: int, k: int, n: int, bits: int) -> dict[str, Call]:
    from optimum import quanto

    if bits == 3:
        return {}
    model = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False)).eval()
    quanto.quantize(model, weights={8: quanto.qint8, 4: quanto.qint4, 2: quanto.qint2}[bits])
    quanto.freeze(model)
    x = torch.randn(m, k)
    return {"quanto": lambda: model[0](x)}


PEERS = {
    "octavo": octavo_calls,
    "ggml": ggml_calls,
    "onnxruntime": onnxruntime_calls,
    "openvino": openvino_calls,
    "torch.ao": torch_calls,
    "torchao": torchao_calls,
    "quanto": quanto_calls,
}


# ---- timing ------------------------------------------------------------------------------------------------------


def time_in_turn(
    calls: dict[str, Call], rounds: int, seconds: float
) -> dict[str, tuple[float, float]]:
    """Fastest and median microseconds of each call, over rounds that go forwards and backwards."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with torch.no_grad():
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                call = calls[name]
                call()
                call()
                end = time.perf_counter() + seconds
                while True:
                    start = time.perf_counter()
                    call()
                    now = time.perf_counter()
                    times[name].append(now - start)
                    if now > end:
                        break
    return {name: (min(t) * 1e6, statistics.median(t) * 1e6) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="+", default=[",".join(map(str, s)) for s in SHAPES], help="M,K,N"
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3, 2])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.05)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"octavo {octavo.__version__}, {octavo.isa()}, torch {torch.__version__}, 1 thread; us: fastest (median)"
    )
    skipped: dict[str, str] = {}
    for shape in options.shapes:
        m, k, n = map(int, shape.split(","))
        for bits in options.bits:
            calls: dict[str, Call] = {}
            for peer in options.peers:
                try:
                    with torch.no_grad():
                        found = PEERS[peer](m, k, n, bits)
                        for call in found.values():
                            call()
                    calls |= found
                except Exception as error:
                    skipped.setdefault(
                        f"{peer}, {bits} bits", f"{type(error).__name__}: {str(error)[:100]}"
                    )
            table = time_in_turn(calls, options.rounds, options.seconds)
            own = min(
                t for name, (t, _) in table.items() if name in ("octavo g128", "octavo channel")
            )
            others = [(t, name) for name, (t, _) in table.items() if not name.startswith("octavo")]
            best = min(others) if others else (float("nan"), "no peer")
            print(
                f"\n({m}, {k}, {n}), {bits} bits: octavo {own:.1f}, {best[1]} {best[0]:.1f}, ratio {best[0] / own:.2f}"
            )
            for name, (fastest, median) in table.items():
                rate = m * k * n / fastest / 1e3
                print(f"  {name:28} {fastest:9.1f} ({median:9.1f})  {rate:6.1f} GMAC/s")
            sys.stdout.flush()
    for who, why in skipped.items():
        print(f"left out: {who}: {why}")


if __name__ == "__main__":
    main()
