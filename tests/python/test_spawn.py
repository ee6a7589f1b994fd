"""Models as arguments of processes that start anew (spawn, forkserver), of their queues, and of DataLoader workers."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import octavo

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems share tensors by name"
)

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
STEPS = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
WORDS = torch.arange(12).view(3, 4)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()


def rows() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


class First(nn.Module):
    """The first result of a module with several."""

    def __init__(self, inner: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(*[x] * self.times)[0]


KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any]]] = {
    "dynamic": (conv, X, {}),
    "static": (conv, X, {"data": [X]}),
    "trainee": (conv, X, {"data": [X], "qat": True}),
    "dynamic trainee": (conv, X, {"qat": True}),
    "trained ranges": (rows, ROWS, {"bits": 4, "data": [ROWS], "qat": True, "qat_method": "lsq+"}),
    "4 bits": (rows, ROWS, {"bits": 4}),
    "4 bits with zero points": (rows, ROWS, {"bits": 4, "symmetric": False, "group_size": 16}),
    "4 bits, levels": (rows, ROWS, {"bits": 4, "grid": "nf"}),
    "8 bits, levels": (rows, ROWS, {"bits": 8, "grid": "kmeans", "data": [ROWS]}),
    "float activations": (rows, ROWS, {"activations": "float"}),
    "embedding": (lambda: nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 4)).eval(), WORDS, {}),
    "LSTM": (lambda: First(nn.LSTM(32, 16, 2, bidirectional=True)).eval(), STEPS, {}),
    "GRU": (lambda: First(nn.GRU(32, 16)).eval(), STEPS, {"data": [STEPS]}),
    "LSTM trainee": (lambda: First(nn.LSTM(32, 16)).eval(), STEPS, {"data": [STEPS], "qat": True}),
    "attention": (lambda: First(nn.MultiheadAttention(32, 4, batch_first=True), 3).eval(), STEPS, {}),
    "attention trainee": (
        lambda: First(nn.MultiheadAttention(32, 4, batch_first=True), 3).eval(), STEPS, {"data": [STEPS], "qat": True},
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval(), STEPS, {"data": [STEPS]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> list[tuple[str, nn.Module, Tensor]]:
    made = []
    for name, (build, x, options) in KINDS.items():
        torch.manual_seed(0)
        made.append((name, octavo.quantize(build(), progress=False, **options).eval(), x))
    return made


def outputs(models: list[tuple[str, nn.Module, Tensor]]) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    with torch.no_grad():
        return {name: model(x).numpy() for name, model, x in models}


def answer(models: list[tuple[str, nn.Module, Tensor]], connection: Any) -> None:
    connection.send(outputs(models))


def answer_from(queue: Any, connection: Any) -> None:
    connection.send(outputs(queue.get()))


def same(got: dict[str, np.ndarray], models: list[tuple[str, nn.Module, Tensor]]) -> None:
    wanted = outputs(models)
    assert got.keys() == wanted.keys() == KINDS.keys()
    assert not [name for name in wanted if not np.array_equal(got[name], wanted[name])]


def received(connection: Any, process: Any) -> dict[str, np.ndarray]:
    process.start()
    try:
        assert connection.poll(120), "the process gave no answer"
        return connection.recv()
    finally:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize(
    "package, method",
    [
        (multiprocessing, "spawn"),
        (multiprocessing, "forkserver"),
        (torch.multiprocessing, "spawn"),
    ],
    ids=["python-spawn", "python-forkserver", "torch-spawn"],
)
def test_as_argument(models: Any, package: Any, method: str) -> None:
    context = package.get_context(method)
    ours, theirs = context.Pipe()
    same(received(ours, context.Process(target=answer, args=(models, theirs))), models)


def test_in_a_queue(models: Any) -> None:
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    queue = context.Queue()
    queue.put(models)
    same(received(ours, context.Process(target=answer_from, args=(queue, theirs))), models)


class Outputs(Dataset):
    """A data set that runs models: each item is what one gives."""

    def __init__(self, models: list[tuple[str, nn.Module, Tensor]]) -> None:
        self.models = models

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return outputs([self.models[index]])


def test_in_workers_of_a_data_loader(models: Any) -> None:
    loader = DataLoader(
        Outputs(models),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="spawn",
        collate_fn=dict,
    )
    same({name: np.asarray(y) for item in loader for name, y in item.items()}, models)
