"""Interrupts calls of octavo at random moments and looks what is left: run by test_interrupts.py.

    python interrupt.py CASE MOMENTS SEED

Another process sends SIGINT, so every moment is as likely as the next. After each one the process
and the user's model must be as before, and the same call must run to its end with the same bits.
The last line is JSON: how many calls were interrupted, and what was harmed. A call that hangs ends
the process with the stacks of its threads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import octavo
from octavo.rounding import tune
from octavo.rounding.learnable import LearnableCodes, LearnableScales

HANGS = 60  # Seconds that no call takes.
X = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(1))


# ---- what is interrupted -------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.norm(self.a(x)))) + x)


class Branching(nn.Module):
    """Not to be traced, and with a block that torch leaves by a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
        self.other = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            large = float(x.abs().amax()) > 0
        return self.other(torch.relu(self.one(x))) if large else x


class Model(nn.Module):
    """What captures, what does not, a hook, a buffer, a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Block()
        self.branching = Branching()
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.head.weight
        self.register_buffer("shift", torch.full((4,), 0.5))
        self.head.register_forward_hook(_hook)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.stem(x))).mean((2, 3)) + self.shift
        return self.tied(self.head(self.drop(self.branching(x))))


def _hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
    return output * 2


def model() -> nn.Module:
    torch.manual_seed(0)
    made = Model()
    with torch.no_grad():
        made(X)  # Statistics that are not 0 and 1.
    return made.eval()


def _score(one: nn.Module) -> float:
    with torch.no_grad():
        return float(one(X[:4]).square().mean())


_CALLS = (os.path.dirname(octavo.__file__), contextlib.__file__)  # Where calls of octavo begin.
FOLDER = Path(tempfile.mkdtemp())
Call = Callable[[nn.Module], object]
Case = tuple[Callable[[], nn.Module], Call]


def _quantized(bits: Any = 4, **options: Any) -> Case:
    return model, lambda m: octavo.quantize(m, bits, progress=False, **options)


def _read_once(one: nn.Module) -> nn.Module:
    data = (X[i : i + 8] for i in (0, 8, 16))
    return octavo.quantize(one, 8, data, inplace=True, progress=False)


def _best() -> Case:
    """Learned for a moment only."""
    LearnableCodes.steps = LearnableScales.steps = 12
    tune._EPOCHS = 1
    return _quantized(4, data=torch.cat([X, X]), effort="best", inplace=True)


def _trainee() -> nn.Module:
    return octavo.quantize(model(), 4, data=X, qat=True, progress=False)


def _small() -> nn.Module:
    return octavo.quantize(model(), 4, data=X, progress=False)


def _save(one: nn.Module) -> object:
    octavo.save(one, FOLDER / "model.safetensors")
    return (FOLDER / "model.safetensors").read_bytes()


def _stored() -> nn.Module:
    octavo.save(_small(), FOLDER / "stored.safetensors")
    return model()


def _compare(trainee: nn.Module) -> object:
    frozen = octavo.freeze(trainee, progress=False)
    return str(octavo.verify(trainee, frozen, X)), str(octavo.report(frozen, X))


CASES: dict[str, Callable[[], Case]] = {
    "data": lambda: _quantized(data=[X[:16], X[16:]]),
    "qat": lambda: _quantized(data=[X[:16], X[16:]], qat=True),
    "inplace": lambda: _quantized(data=[X[:16], X[16:]], inplace=True),
    "no_data": lambda: _quantized(inplace=True),
    "read_once": lambda: (model, _read_once),
    "callable": lambda: _quantized(data=lambda m: [m(x) for x in X.split(8)], inplace=True),
    "average": lambda: _quantized(bits=4.5, data=X, inplace=True),
    "best": _best,
    "search": lambda: _quantized(data=X, evaluate=_score, max_drop=0.1, inplace=True, bits=3),
    "freeze": lambda: (_trainee, lambda m: octavo.freeze(m, progress=False)),
    "save": lambda: (_small, _save),
    "load": lambda: (_stored, lambda m: octavo.load(FOLDER / "stored.safetensors", m)),
    "verify": lambda: (_trainee, _compare),
}


# ---- what must be as before ----------------------------------------------------------------------


def process() -> dict[str, object]:
    """Everything of the process that octavo or torch may have changed meanwhile."""
    patched = [nn.Module, Tensor, torch, nn.functional, torch.utils.checkpoint, torch_module]
    hooks = {name: dict(v) for name, v in vars(torch_module).items() if name.startswith("_global_")
             and isinstance(v, dict)}  # fmt: skip
    return {
        **{f"names of {owner.__name__}": _names(owner) for owner in patched},
        "hooks of all modules": hooks,
        "fx tracing": torch.fx._symbolic_trace.is_fx_tracing(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "saved tensors": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "threads of torch": torch.get_num_threads(),
        "function modes": list(_get_current_function_mode_stack()),
        "dispatch modes": list(_get_current_dispatch_mode_stack()),
        "random of torch": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "random of Python": hash(random.getstate()),
        "handlers": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "threads": [
            t.name for t in threading.enumerate() if type(t).__name__ != "TMonitor"
        ],  # tqdm's
        "warnings": list(warnings.filters),
        "files": sorted(name for name in os.listdir(FOLDER) if name.endswith(".tmp")),
        "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    }


def _names(owner: object) -> dict[str, int]:
    return {name: id(value) for name, value in vars(owner).items() if callable(value)}


def state(one: nn.Module) -> dict[str, object]:
    """Everything of a model: classes, attributes by identity, tables by content, tensors by bits."""
    found: dict[str, object] = {}
    for name, module in one.named_modules():
        found[name] = type(module)
        for key, value in vars(module).items():
            at = f"{name}.{key}"
            if isinstance(value, dict):
                found[at] = [(k, id(v)) for k, v in value.items()]
            else:
                found[at] = value if isinstance(value, (bool, int, str)) else id(value)
    for name, tensor in [*one.named_parameters(), *one.named_buffers()]:
        found[f"bits of {name}"] = tensor.detach().clone().contiguous().numpy().tobytes()
        found[f"gradient of {name}"] = (tensor.requires_grad, id(tensor.grad))
    return found


def bits(result: object) -> object:
    """What a call has returned, to be compared."""
    if not isinstance(result, nn.Module):
        return result
    with torch.no_grad():
        return result(X).numpy().tobytes()


def different(before: dict[str, object], after: dict[str, object]) -> list[str]:
    names = dict.fromkeys([*before, *after])
    return [n for n in names if n not in before or n not in after or before[n] != after[n]]


# ---- interruptions -------------------------------------------------------------------------------

_SENDER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin:
    for delay in map(float, line.split()):
        time.sleep(delay)
        os.kill(os.getppid(), signal.SIGINT)
    with open(sys.argv[1], "a") as sent:
        sent.write(".")
"""


class Sender:
    """Another process that interrupts this one. No step of ours loses anything if it is ended."""

    def __init__(self) -> None:
        self._sent, self._asked = FOLDER / "sent", 0
        self._sent.touch()
        command = [sys.executable, "-c", _SENDER, str(self._sent)]
        self._pipe = subprocess.Popen(command, stdin=subprocess.PIPE).stdin

    def after(self, *delays: float) -> None:
        """Has it interrupt after a delay, and again after others."""
        assert self._pipe is not None
        self._asked += 1
        os.write(self._pipe.fileno(), (" ".join(map(str, delays)) + "\n").encode())

    def wait(self) -> None:
        """Until it has."""
        while self._sent.stat().st_size < self._asked:
            time.sleep(0.0005)


def _raises(_number: int, frame: FrameType | None) -> None:
    """The handler: what comes while no call of octavo runs is not ours to look at."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_CALLS):
            raise KeyboardInterrupt
        frame = frame.f_back


def interrupted(sender: Sender, call: Call, one: nn.Module, delays: list[float]) -> bool:
    """Whether the call was ended; else it has finished before."""
    ended = False
    sender.after(*delays)
    try:
        call(one)
    except KeyboardInterrupt:
        ended = True
    sender.wait()
    return ended


def harm(
    case: Case, sender: Sender, delays: list[float], wanted: object
) -> tuple[bool, float, list[str]]:
    """Whether a call was interrupted, how long a whole one takes now, what is not as before."""
    make, call = case
    one = make()
    gc.collect()
    before, process_before = state(one), process()
    start = time.perf_counter()
    ended = interrupted(sender, call, one, delays)
    seconds = time.perf_counter() - start
    harmed = different(process_before, process())
    if ended:
        harmed += different(before, state(one))
        start = time.perf_counter()
        try:
            result = call(one)
            seconds = time.perf_counter() - start
            harmed += [] if bits(result) == wanted else ["bits of the result"]
        except Exception as error:
            harmed.append(f"the call after it: {type(error).__name__}: {error}")
    return ended, seconds, harmed


def main(name: str, moments: int, seed: int) -> None:
    """Interrupts as often as is asked; every fourth time twice."""
    signal.signal(signal.SIGINT, _raises)
    torch.set_num_threads(1)
    case, drawn = CASES[name](), random.Random(seed)
    make, call = case
    wanted = bits(call(make()))
    one, start = make(), time.perf_counter()
    call(one)
    seconds = time.perf_counter() - start
    sender, count, harmed = Sender(), 0, []
    for moment in range(moments):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        delays = [drawn.uniform(0, 1.05 * seconds)]
        if moment % 4 == 3:
            delays.append(drawn.choice((0.0, 0.0005, 0.003)))
        ended, seconds, found = harm(case, sender, delays, wanted)
        count += ended
        if found:
            harmed.append([moment, *found])
        faulthandler.cancel_dump_traceback_later()
    result = {"case": name, "moments": moments, "interrupted": count, "harmed": harmed}
    print(json.dumps(result | {"seconds": round(seconds, 3)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
