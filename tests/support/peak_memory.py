"""Peak memory of `octavo.quantize(model, 8, data=...)` beside what it may take; a process for each network.

    python tests/support/peak_memory.py --batch 8 resnet18 resnet50 mobilenet_v2

The bound is three times the float model plus the activations of one batch: what all its layers give, together.
Large blocks are given back to the system when they are freed: what is counted is what quantize holds at one time,
not what the C library's heap keeps in pieces, which differs between runs by more than a factor of two.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Peak:
    """Bytes. grown: what the peak of the process lies above what it held before."""

    model: int
    activations: int
    grown: int

    @property
    def bound(self) -> int:
        return 3 * self.model + self.activations


def small_network() -> nn.Module:
    """Depthwise convolutions whose values are far larger than its weights."""

    def block(given: int, wide: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(given, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, 16, 1), nn.BatchNorm2d(16),
        ]  # fmt: skip

    layers = [*block(3, 64, 1), *block(16, 64, 1), *block(16, 64, 1), *block(16, 64, 2)]
    layers += [*block(16, 96, 2), *block(16, 96, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def activations(model: nn.Module, x: Tensor) -> int:
    """Bytes that the layers of the model give for one batch."""
    total = 0

    def add(_module: nn.Module, _args: object, output: object) -> None:
        nonlocal total
        total += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    handles = [m.register_forward_hook(add) for m in model.modules() if not list(m.children())]
    with torch.no_grad():
        model(x[:1])
    for handle in handles:
        handle.remove()
    return total * len(x)


def status(field: str) -> int:
    """Bytes by the operating system: VmRSS (now) or VmHWM (the most since it was reset)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(name: str, batch: int, batches: int, size: int) -> Peak:
    """In this process, which should be a fresh one."""
    import octavo

    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if name == "small":
        model = small_network()
    else:
        import torchvision

        model = getattr(torchvision.models, name)(weights=None).eval()
    data = [torch.randn(batch, 3, size, size) for _ in range(batches)]
    with torch.no_grad():
        model(data[0][:1])
    octavo.quantize(small_network(), 8, data=torch.randn(2, 3, 32, 32), progress=False)
    values = [*model.parameters(), *model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in values)
    given = activations(model, data[0])
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    octavo.quantize(model, 8, data=data, progress=False)
    return Peak(weights, given, status("VmHWM") - before)


def peak_of(name: str, batch: int, batches: int, size: int) -> Peak:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--inside", name, f"--batch={batch}"]
    command += [f"--batches={batches}", f"--size={size}"]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Peak(*map(int, done.stdout.split()[-3:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--inside", default="", help="measure this network in this very process")
    given = parser.parse_args()
    sizes = (given.batch, given.batches, given.size)
    if given.inside:
        print(*dataclasses.astuple(measure(given.inside, *sizes)))
        return
    print(f"{'MiB':16}{'model':>8}{'activations':>13}{'bound':>8}{'peak':>8}")
    for name in given.networks or ["resnet18", "resnet50", "mobilenet_v2"]:
        peak = peak_of(name, *sizes)
        columns = (peak.model, peak.activations, peak.bound, peak.grown)
        print(f"{name:16}{{:8.0f}}{{:13.0f}}{{:8.0f}}{{:8.0f}}".format(*(c / MIB for c in columns)))


if __name__ == "__main__":
    main()
