"""Times fake quantization in one run: octavo, torch core's operators, plain torch eager and compiled, ReLU as floor.

    OMP_PROC_BIND=true python benchmarks/fake_quantize.py

One thread. Every row is timed in rounds that interleave all contenders; printed are the fastest and the median call in
nanoseconds an element, and octavo's time as a ratio of the others' (fastest calls). octavo's ratio to ReLU is of the
same kind of call: forward alone, or forward and backward. Freed memory stays with the process (glibc's mallopt), for all
contenders alike: else whoever follows a contender with many temporaries pays 1 ns an element for fresh pages.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import octavo
from octavo import ops

SHAPES = {"0.2 M": (8, 32, 28, 28), "6.4 M": (32, 64, 56, 56)}


class Rounded(torch.autograd.Function):
    """Round whose gradient is 1: what straight-through code writes."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, dy: Tensor) -> Tensor:
        return dy


def straight_through(x: Tensor, scale: Tensor, zero: Tensor, qmin: int, qmax: int) -> Tensor:
    """The plain expression: gradients pass between the clamps."""
    t = torch.clamp(x / scale + zero, qmin, qmax)
    return (t + (torch.round(t) - t).detach() - zero) * scale


def learned_step(x: Tensor, scale: Tensor, qmin: int, qmax: int, factor: float) -> Tensor:
    """LSQ in plain torch."""
    s = scale * factor + (scale - scale * factor).detach()
    t = torch.clamp(x / s, qmin, qmax)
    return (t + (torch.round(t) - t).detach()) * s


def nearest_level(x: Tensor, scale: Tensor, levels: Tensor, middles: Tensor) -> Tensor:
    """Levels of a table with a learned step, in plain torch."""
    t = x / scale
    return (t + (levels[torch.bucketize(t.detach(), middles)] - t).detach()) * scale


def moving_average(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Observe and fake-quantize in plain torch."""
    with torch.no_grad():
        a, b = torch.aminmax(x)
        low.lerp_(a, 0.01)
        high.lerp_(b, 0.01)
        lo, hi = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = ((hi - lo) / 255).clamp(min=1.2e-7)
        zero = torch.round(-lo / scale)
    return straight_through(x, scale, zero, 0, 255)


def keep_memory() -> None:
    """Tells glibc to give no memory back to the system."""
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30)


def time_all(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds a call of each contender, in interleaved rounds of at least a millisecond each."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(1e-3 / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for name, call in calls.items():
            call()  # Untimed: its own data are in the caches, its own memory in the heap.
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def rows(shape: tuple[int, ...], compiled: bool) -> dict[str, dict[str, Callable[[], object]]]:
    """Contenders by kind of call."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    leaf = x.clone().requires_grad_()
    dy = torch.randn(shape)
    scale, zero = torch.tensor([0.031]), torch.tensor([117.0])
    izero = zero.int()
    channels = shape[1]
    scales, zeros = torch.rand(channels) * 0.02 + 0.02, torch.zeros(channels)
    izeros = zeros.int()
    weight = x.reshape(512, -1)
    weights = torch.rand(512) * 0.2 + 0.2
    step = torch.tensor([0.2], requires_grad=True)
    nothing = torch.tensor([0.0], requires_grad=True)
    factor = 1 / math.sqrt(x[0].numel() * 7)
    state = torch.tensor([math.inf, -math.inf])
    observer, fake = torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    running = [
        torch.tensor(math.inf),
        torch.tensor(-math.inf),
        torch.ones(1),
        torch.zeros(1, dtype=torch.int32),
    ]
    plain = [torch.tensor(-4.0), torch.tensor(4.0)]
    last = x.permute(0, 2, 3, 1).contiguous()
    half, half_leaf = x.bfloat16(), x.bfloat16().requires_grad_()
    table = torch.tensor(
        [-127, -95, -79, -63, -48, -32, -16, 0, 8, 16, 32, 48, 63, 79, 95, 127], dtype=torch.int8
    )
    levels = table.float()
    middles = (levels[1:] + levels[:-1]) / 2

    def both(y: Tensor, *others: Tensor) -> object:
        if y.dtype is torch.bfloat16:
            return torch.autograd.grad(y, half_leaf, half)
        return torch.autograd.grad(y, [leaf, *others], dy)

    core = torch.fake_quantize_per_tensor_affine
    core_channel = torch.fake_quantize_per_channel_affine
    core_learned = torch._fake_quantize_learnable_per_tensor_affine

    def fused() -> object:
        return torch.fused_moving_avg_obs_fake_quant(
            x, observer, fake, *running, 0.01, 0, 255, -1, False, False
        )

    result: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {
            "octavo": lambda: ops.fake_quantize(x, scale, zero, qmin=0, qmax=255),
            "ReLU": lambda: torch.relu(x),
            "core": lambda: core(x, scale, izero, 0, 255),
            "eager": lambda: straight_through(x, scale, zero, 0, 255),
        },
        "forward, channels in the middle": {
            "octavo": lambda: ops.fake_quantize(x, scales, qmin=-128, qmax=127, axis=1),
            "ReLU": lambda: torch.relu(x),
            "core": lambda: core_channel(x, scales, izeros, 1, -128, 127),
            "eager": lambda: straight_through(x, scales.view(-1, 1, 1), zeros.view(-1, 1, 1), -128, 127),
        },
        "forward, channels innermost": {
            "octavo": lambda: ops.fake_quantize(last, scales, qmin=-128, qmax=127, axis=3),
            "ReLU": lambda: torch.relu(last),
            "core": lambda: core_channel(last, scales, izeros, 3, -128, 127),
            "eager": lambda: straight_through(last, scales, zeros, -128, 127),
        },
        "forward, weights of 512 channels": {
            "octavo": lambda: ops.fake_quantize(weight, weights, qmin=-8, qmax=7, axis=0),
            "ReLU": lambda: torch.relu(weight),
            "core": lambda: core_channel(weight, weights, torch.zeros(512, dtype=torch.int32), 0, -8, 7),
            "eager": lambda: straight_through(weight, weights.view(-1, 1), zero * 0, -8, 7),
        },
        "forward and backward": {
            "octavo": lambda: both(ops.fake_quantize(leaf, scale, zero, qmin=0, qmax=255)),
            "ReLU": lambda: both(torch.relu(leaf)),
            "core": lambda: both(core(leaf, scale, izero, 0, 255)),
            "eager": lambda: both(straight_through(leaf, scale, zero, 0, 255)),
        },
        "forward and backward with ReLU inside": {
            "octavo": lambda: both(ops.fake_quantize(leaf, scale, qmin=0, qmax=255, relu=True)),
            "ReLU": lambda: both(torch.relu(leaf)),
            "core": lambda: both(core(torch.relu(leaf), scale, izero * 0, 0, 255)),
            "eager": lambda: both(straight_through(torch.relu(leaf), scale, zero * 0, 0, 255)),
        },
        "learned step, forward and backward": {
            "octavo": lambda: both(ops.fake_quantize_learned(leaf, step, qmin=-8, qmax=7, grad_scale=factor), step),
            "ReLU": lambda: both(torch.relu(leaf)),
            "core": lambda: both(core_learned(leaf, step, nothing, -8, 7, factor), step),
            "eager": lambda: both(learned_step(leaf, step, -8, 7, factor), step),
        },
        "observe and fake-quantize": {
            "octavo": lambda: ops.observe_fake_quantize(x, state, qmin=0, qmax=255, momentum=0.01),
            "ReLU": lambda: torch.relu(x),
            "core": fused,
            "eager": lambda: moving_average(x, *plain),
        },
        "bfloat16, forward": {
            "octavo": lambda: ops.fake_quantize(half, scale, zero, qmin=0, qmax=255),
            "ReLU": lambda: torch.relu(half),
            "eager": lambda: straight_through(half, scale, zero, 0, 255),
        },
        "bfloat16, forward and backward": {
            "octavo": lambda: both(ops.fake_quantize(half_leaf, scale, zero, qmin=0, qmax=255)),
            "ReLU": lambda: both(torch.relu(half_leaf)),
            "eager": lambda: both(straight_through(half_leaf, scale, zero, 0, 255).bfloat16()),
        },
        "sixteen levels, learned step, forward and backward": {
            "octavo": lambda: both(ops.fake_quantize_levels(leaf, table, step, axis=None, learned=True), step),
            "ReLU": lambda: both(torch.relu(leaf)),
            "eager": lambda: both(nearest_level(leaf, step, levels, middles), step),
        },
    }  # fmt: skip
    if compiled:
        expression, lsq, average, level = (
            torch.compile(f, dynamic=False)
            for f in (straight_through, learned_step, moving_average, nearest_level)
        )
        add = {
            "forward": lambda: expression(x, scale, zero, 0, 255),
            "forward and backward": lambda: both(expression(leaf, scale, zero, 0, 255)),
            "learned step, forward and backward": lambda: both(
                lsq(leaf, step, -8, 7, factor), step
            ),
            "observe and fake-quantize": lambda: average(x, *plain),
            "bfloat16, forward": lambda: expression(half, scale, zero, 0, 255),
            "bfloat16, forward and backward": lambda: both(
                expression(half_leaf, scale, zero, 0, 255).bfloat16()
            ),
            "sixteen levels, learned step, forward and backward": lambda: both(
                level(leaf, step, levels, middles), step
            ),
        }
        for name, call in add.items():
            result[name]["compiled"] = call
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--only", default="", help="part of the names of the rows wanted")
    parser.add_argument("--eager", action="store_true", help="leave out torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    print(
        f"octavo {octavo.isa()}, torch {torch.__version__}, 1 thread; ns an element: fastest (median)"
    )
    for size, shape in SHAPES.items():
        count = math.prod(shape)
        for name, calls in rows(shape, not arguments.eager).items():
            if arguments.only not in name:
                continue
            times = time_all(calls, arguments.seconds)
            ours = min(times["octavo"])
            cells = []
            for who, values in times.items():
                best, middle = min(values) / count * 1e9, statistics.median(values) / count * 1e9
                cell = f"{who} {best:.3f} ({middle:.3f})"
                cells.append(cell if who == "octavo" else f"{cell} x{ours / min(values):.2f}")
            print(f"{size} {name}: " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
