"""Times one training step in few bits, and its peak memory: octavo's trainee, the float model, plain torch, torch.ao.

    OMP_PROC_BIND=true python benchmarks/training_step.py

A step is forward, cross entropy, backward and SGD with momentum; weights and activations of every layer have 4 bits.
ResNet-18 is torchvision's at 32 x 3 x 64 x 64, ResNet-20 the CIFAR network at 128 x 3 x 32 x 32. One thread. Time: all
contenders in one process, one step each in turn, fastest and median; freed memory stays with the process for all alike.
Memory: each contender in a process of its own, in which glibc takes every block of 64 KiB or more from the system and
gives it back when it is freed, so that the resident set is what is allocated. After two steps the high-water mark
(VmHWM) is reset, one more step runs, and the mark less what was resident before the model was made is the peak:
parameters, gradients, momentum, activations and scratch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import octavo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
CONTENDERS = ("float", "octavo lsq", "octavo ste", "plain torch lsq", "torch.ao")
NETWORKS = {"resnet18": (32, 3, 64, 64), "resnet20": (128, 3, 32, 32)}


def network(name: str) -> nn.Module:
    """Random weights, seeded; statistics of BatchNorm from a few batches."""
    torch.manual_seed(0)
    if name == "resnet18":
        from torchvision.models import resnet18

        model = resnet18(weights=None, num_classes=10)
    else:
        from networks import ResNet20

        model = ResNet20()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(NETWORKS[name]))
    return model


class PlainLsq(nn.Module):
    """LSQ as one writes it in torch, with gradients by detaching."""

    def __init__(self, start: float, qmin: int, qmax: int) -> None:
        super().__init__()
        self.step, self.qmin, self.qmax = nn.Parameter(torch.tensor(start)), qmin, qmax

    def forward(self, x: Tensor) -> Tensor:
        factor = 1 / math.sqrt(x[0].numel() * self.qmax)
        s = self.step * factor + (self.step - self.step * factor).detach()
        t = torch.clamp(x / s, self.qmin, self.qmax)
        return (t + (torch.round(t) - t).detach()) * s


def plain(model: nn.Module, x: Tensor) -> nn.Module:
    """Every layer's input and weight through `PlainLsq`."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        signed = layer is layers[0]
        layer.source = PlainLsq(0.2, -8 if signed else 0, 7 if signed else 15)
        parametrize.register_parametrization(
            layer, "weight", PlainLsq(float(layer.weight.detach().abs().mean()), -8, 7)
        )
        layer.register_forward_pre_hook(lambda module, args: (module.source(args[0]),))
    return model


def torch_ao(model: nn.Module, x: Tensor) -> nn.Module:
    """torch.ao's FX graph mode: moving averages, fake-quantized weights per channel."""
    from torch.ao.quantization import FakeQuantize, QConfig, QConfigMapping
    from torch.ao.quantization import MovingAverageMinMaxObserver as Average
    from torch.ao.quantization import MovingAveragePerChannelMinMaxObserver as PerChannel
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    activation = FakeQuantize.with_args(observer=Average, quant_min=0, quant_max=15)
    weight = FakeQuantize.with_args(
        observer=PerChannel, quant_min=-8, quant_max=7, dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric, ch_axis=0,
    )  # fmt: skip
    mapping = QConfigMapping().set_global(QConfig(activation=activation, weight=weight))
    return prepare_qat_fx(model.train(), mapping, (x,))


def contender(name: str, model: nn.Module, x: Tensor) -> nn.Module:
    if name.startswith("octavo"):
        method = "ste" if name.endswith("ste") else None
        return octavo.quantize(model, (4, 4), data=[x], qat=True, qat_method=method, progress=False)
    made = {"float": lambda m, _: m, "plain torch lsq": plain, "torch.ao": torch_ao}[name]
    return made(model, x)


def step_of(name: str, net: str, options: argparse.Namespace) -> Callable[[], object]:
    """One training step, ready to be called."""
    shape = NETWORKS[net]
    model = contender(name, network(net), torch.randn(shape))
    x, y = torch.randn(shape), torch.arange(shape[0]) % 10
    if options.channels_last:
        x, model = (
            x.to(memory_format=torch.channels_last),
            model.to(memory_format=torch.channels_last),
        )
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def mallopt(option: int, value: int) -> None:
    """Tells glibc when to give memory back."""
    ctypes.CDLL(None).mallopt(option, value)


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"expected {what} in /proc/self/status, got none.")


def peak_memory(name: str, net: str, options: argparse.Namespace) -> int:
    """Bytes of one step at its peak, beyond the libraries; in this process."""
    mallopt(MMAP_THRESHOLD, 1 << 16)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    if name.startswith("octavo"):  # Its libraries and tables too.
        octavo.quantize(small, (4, 4), data=[torch.randn(2, 3, 8, 8)], qat=True, progress=False)
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    before = resident("VmRSS")
    step = step_of(name, net, options)
    for _ in range(2):
        step()
    gc.collect()
    trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    step()
    return resident("VmHWM") - before


def in_a_process(name: str, net: str, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--networks", net, "--peak", name]
    command += ["--channels-last"] * options.channels_last + ["--bf16"] * options.bf16
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(run.stdout.split()[-1])


def time_all(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds a step, one of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--channels-last", action="store_true", help="for all contenders")
    parser.add_argument("--bf16", action="store_true", help="under autocast, for all contenders")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--peak", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.peak:
        print(peak_memory(options.peak, options.networks[0], options))
        return
    print(f"octavo {octavo.isa()}, torch {torch.__version__}, 1 thread"
          f"{', channels last' * options.channels_last}{', bfloat16' * options.bf16}")  # fmt: skip
    for net in options.networks:
        peaks, times = {}, {}
        if not options.no_memory:
            peaks = {name: in_a_process(name, net, options) for name in options.contenders}
        if not options.no_time:
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
            mallopt(MMAP_THRESHOLD, 2**30)
            calls = {name: step_of(name, net, options) for name in options.contenders}
            times = time_all(calls, options.rounds)
        for name in options.contenders:
            cells = []
            if times:
                best, floor = min(times[name]), min(times[options.contenders[0]])
                ratios = [
                    a / b for a, b in zip(times[name], times[options.contenders[0]], strict=True)
                ]
                cells.append(f"{1e3 * best:.1f} ms ({1e3 * statistics.median(times[name]):.1f}), "
                             f"x{best / floor:.3f} (x{statistics.median(ratios):.3f})")  # fmt: skip
            if peaks:
                cells.append(
                    f"{peaks[name] / 2**20:.1f} MiB, x{peaks[name] / peaks[options.contenders[0]]:.3f}"
                )
            print(f"{net} {name}: " + "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
