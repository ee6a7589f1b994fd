"""Prints one SHA-256 a setting of the logits of a saved integer network; test_identity runs it once an ISA.

python hash_outputs.py resnet20|probe FILE IMAGES
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ROUNDING = {"nearest": 0x000, "down": 0x400, "up": 0x800, "zero": 0xC00}  # x86 fenv.h


def digest(model: nn.Module, x: Tensor, batch: int) -> str:
    with torch.no_grad():
        y = torch.cat([model(part) for part in x.split(batch)])
    assert y.is_contiguous() and y.dtype == torch.float32 and bool(y.isfinite().all())
    return hashlib.sha256(y.numpy().tobytes()).hexdigest()


def settings(model: nn.Module, x: Tensor, brief: bool = False) -> dict[str, str]:
    """Every combination of threads, batch and memory format, and the processor's rounding and denormal modes.

    brief: two settings only.
    """
    results = {}
    before = torch.get_num_threads()
    if brief:
        torch.set_num_threads(2)
        results["threads 2, batch 64, contiguous"] = digest(model, x, 64)
        torch.set_num_threads(1)
        last = x.contiguous(memory_format=torch.channels_last)
        results["threads 1, batch 1, channels_last"] = digest(model, last, 1)
        torch.set_num_threads(before)
        return results
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 64):
            for name in ("contiguous", "channels_last"):
                formats = {
                    "contiguous": torch.contiguous_format,
                    "channels_last": torch.channels_last,
                }
                view = x.contiguous(memory_format=formats[name])
                results[f"threads {threads}, batch {batch}, {name}"] = digest(model, view, batch)
    if torch.set_flush_denormal(True):
        results["flush denormals"] = digest(model, x, 64)
        torch.set_flush_denormal(False)
    import platform

    if platform.machine() in ("x86_64", "AMD64"):
        libm = ctypes.CDLL(ctypes.util.find_library("m"))
        for name, code in ROUNDING.items():
            assert libm.fesetround(code) == 0
            try:
                with torch.no_grad():
                    y = model(x)
            finally:
                libm.fesetround(0)
            results[f"rounding {name}"] = hashlib.sha256(y.numpy().tobytes()).hexdigest()
    torch.set_num_threads(before)
    return results


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    import networks
    import octavo

    kind, file, images = sys.argv[1:4]
    model = networks.ResNet20() if kind == "resnet20" else networks.MobileNetV2Probe()
    small = octavo.load(file, model.eval())
    print("isa", octavo.isa())
    for name, value in settings(small, torch.load(images)).items():
        print(f"{value} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
