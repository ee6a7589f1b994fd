"""A model's calls while memory ends: `python memory_ladder.py MODEL RUNGS`, one process a model.

Every rung runs in a new thread, which has no scratch yet, with a little more memory than the one before. A call gives
the right bits or raises MemoryError, or torch's own error where torch allocates; after it, with memory again, the right
bits. Prints how many rungs failed and passed.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo

TORCH_ERRORS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 48, (3, 2), dilation=(1, 2)), nn.ReLU(), nn.Conv2d(48, 32, 1),
    ).eval()  # fmt: skip


class Residual(nn.Module):
    """One region with two inputs' worth of steps, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = F.relu(self.b(y) + y)
        return self.fc(F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 1).flatten(1))


class Attention(nn.Module):
    """Attention and what follows. Products are sums over the last dimension: torch's own matrix products give other
    last bits where memory is short."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = torch.softmax((q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) / 8, -1)
        x = x + self.out((scores.unsqueeze(-2) * v.transpose(-1, -2).unsqueeze(-3)).sum(-1))
        return x + self.down(F.gelu(self.up(x)))


def call(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            y = model(x)
        return y[0] if isinstance(y, tuple) else y

    return run


def trained(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A step from the same state each time: the loss and all gradients in one tensor."""
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def run() -> Tensor:
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        loss = model(x).square().mean()
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat([loss.detach().view(1), *gradients])

    return run


def made(name: str) -> Callable[[], Tensor]:
    image = torch.randn(6, 3, 40, 40)
    rows = torch.randn(200, 384)

    def quantized(model: nn.Module, **options: Any) -> nn.Module:
        return octavo.quantize(model.eval(), progress=False, **options)

    if name == "cnn":
        return call(quantized(small_cnn(), data=[image]), image)
    if name == "cnn_dynamic":
        return call(quantized(small_cnn()), image)
    if name == "linear":
        return call(quantized(nn.Linear(384, 500)), rows)
    if name == "low_bits":
        return call(quantized(nn.Linear(384, 500), bits=4), rows)
    if name == "lstm":
        return call(quantized(nn.LSTM(384, 128, batch_first=True)), rows.view(10, 20, 384))
    if name == "attention":
        return call(quantized(Attention()), torch.randn(8, 60, 64))
    if name == "embedding":
        indices = torch.randint(0, 1000, (64, 100))
        return call(quantized(nn.Embedding(1000, 64)), indices)
    if name == "region":
        x = torch.randn(8, 16, 32, 32)
        return call(quantized(Residual(), data=[x]), x)
    if name == "trainee":
        return trained(
            octavo.quantize(small_cnn().train(), 8, data=[image], qat=True, progress=False), image
        )
    raise ValueError(name)


def size_of_process() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()


def in_new_thread(work: Callable[[], Any]) -> Any:
    """What work returns or raises, in a thread whose pool has begun."""
    found: list[Any] = []

    def run() -> None:
        torch.ones(1 << 20).sum()  # begins the pool of this thread: later, libgomp ends the process
        try:
            found.append(work())
        except BaseException as error:
            found.append(error.with_traceback(None))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def rung(run: Callable[[], Tensor], right: Tensor, extra: int) -> bool:
    """Whether a call with `extra` bytes beyond what the process has now gives a result."""

    def limited() -> bool:
        error: BaseException | None = None
        y = None
        resource.setrlimit(resource.RLIMIT_AS, (size_of_process() + extra, resource.RLIM_INFINITY))
        try:
            y = run()
        except (MemoryError, RuntimeError) as caught:
            error = caught.with_traceback(None)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if isinstance(error, RuntimeError) and not any(t in str(error) for t in TORCH_ERRORS):
            raise error
        if y is not None:
            assert torch.equal(y, right), "wrong with little memory"
        assert torch.equal(run(), right), "wrong after memory had ended"
        return y is not None

    result = in_new_thread(limited)
    if isinstance(result, BaseException):
        raise result
    return bool(result)


def main(name: str, rungs: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    run = made(name)
    right = in_new_thread(run)
    failed = passed = 0
    for i in range(rungs):
        if rung(run, right, int(4096 * 2 ** (14 * i / rungs))):  # 4 KiB .. 64 MiB
            passed += 1
        else:
            failed += 1
        if passed == 3:
            break
    print(f"failed {failed} passed {passed}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
