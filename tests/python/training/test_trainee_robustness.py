"""Trainees in threads, forks and loaders, and bad inputs of training."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_trainee import Net, data, trainee_of, warm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import octavo
from concurrency import forked, in_threads
from conftest import FULL
from octavo.nn.fake_quantize import METHODS, FakeQuantize, Monitor
from octavo.numerics.scheme import QParams

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def undropped(**kwargs: object) -> nn.Module:
    class Certain(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
            return self.fc(y.mean((2, 3)))

    return trainee_of(model=warm(Certain()), **kwargs)


def state_of(model: nn.Module) -> bytes:
    return b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values())


def train(trainee: nn.Module, batches: list[Tensor]) -> bytes:
    """Every bit of the state after a step on each batch."""
    optimizer = torch.optim.SGD(trainee.parameters(), 0.05, momentum=0.9)
    for x in batches:
        optimizer.zero_grad()
        F.cross_entropy(trainee(x), torch.arange(len(x)) % 5).backward()
        optimizer.step()
    return state_of(trainee)


# ---- threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_concurrent_forwards(method: str) -> None:
    trainee = undropped(qat_method=method).eval()
    inputs = [torch.randn(1 + i, 3, 8, 8) for i in range(8)]
    with torch.no_grad():
        expected = [trainee(x) for x in inputs]

    def work(i: int) -> None:
        with torch.no_grad():
            for j in range(500 if FULL else 20):
                k = (i + j) % 8
                assert torch.equal(trainee(inputs[k]), expected[k])

    in_threads(8, work)


@pytest.mark.parametrize("method", METHODS)
def test_each_thread_trains_its_own(method: str) -> None:
    """Threads that train copies end with the bits of one that trains alone."""
    torch.manual_seed(0)
    trainee = undropped(qat_method=method)
    batches = [torch.randn(8, 3, 8, 8) for _ in range(20 if FULL else 4)]
    torch.set_num_threads(1)
    expected = train(copy.deepcopy(trainee), batches)
    copies = [copy.deepcopy(trainee) for _ in range(8)]

    def work(i: int) -> None:
        torch.set_num_threads(1)
        assert train(copies[i], batches) == expected

    in_threads(8, work)


# ---- fork -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_fork_after_a_step(method: str) -> None:
    """A child evaluates what the parent has trained, in threads of its own."""
    torch.set_num_threads(2)
    trainee = undropped(qat_method=method)
    train(trainee, [torch.randn(16, 3, 32, 32)])
    trainee.eval()
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        expected = trainee(x), octavo.freeze(trainee, progress=False)(x)

    def work() -> bool:
        torch.set_num_threads(1)  # Torch's own float layers hang in a fork otherwise.
        with torch.no_grad():
            frozen = octavo.freeze(trainee, progress=False)
            return torch.equal(trainee(x), expected[0]) and torch.equal(frozen(x), expected[1])

    forked(work)
    with torch.no_grad():
        assert torch.equal(trainee(x), expected[0])


def _train_pickled(arguments: tuple[bytes, list[Tensor]]) -> bytes:
    torch.set_num_threads(1)
    return train(pickle.loads(arguments[0]), arguments[1])


def test_spawned_processes_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
    torch.set_num_threads(1)
    trainee = octavo.quantize(warm(Net()), (4, 4), data=data(), qat=True, progress=False)
    for module in trainee.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainee.eval()  # Ranges and statistics keep still, steps are trained.
    batches = data()
    text = pickle.dumps(trainee)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map_async(_train_pickled, [(text, batches)] * 2).get(90)
    assert results == [train(trainee, batches)] * 2


@pytest.mark.filterwarnings("ignore:This DataLoader")
@pytest.mark.parametrize("workers", [2, 4])
def test_training_with_data_loader_workers(workers: int) -> None:
    """Batches from worker processes train to the bits that those of the process itself do."""
    torch.manual_seed(0)
    trainee = undropped()
    dataset = TensorDataset(torch.randn(32, 3, 8, 8))
    results = []
    for count in (0, workers):
        loader = DataLoader(dataset, 8, num_workers=count, timeout=30 if count else 0)
        twin = copy.deepcopy(trainee)
        results.append(train(twin, [x for (x,) in loader]))
    assert results[0] == results[1]


# ---- bad inputs of training ---------------------------------------------------------------------


def refused(model: object, error: type[Exception], text: str, **kwargs: object) -> None:
    """quantize(qat=True) raises, in the one form, and leaves the model alone."""
    before = state_of(model) if isinstance(model, nn.Module) else b""
    names = [n for n, _ in model.named_modules()] if isinstance(model, nn.Module) else []
    options = {"bits": 4, "data": data(), "qat": True, "progress": False, **kwargs}
    for inplace in (False, True):
        with pytest.raises(error, match=text) as info:
            octavo.quantize(model, inplace=inplace, **options)
        assert "got" in str(info.value)
    if isinstance(model, nn.Module):
        assert state_of(model) == before and [n for n, _ in model.named_modules()] == names
        assert all("forward" not in vars(module) for module in model.modules())


def test_models_that_cannot_be_trained_are_refused() -> None:
    refused(None, TypeError, "model must be")
    refused(Net().state_dict(), TypeError, "model must be")
    refused(nn.DataParallel(Net()), TypeError, r"\.module")
    refused(nn.Sequential(nn.ReLU()), octavo.NothingQuantizedError, "layer")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    model = warm(Net())
    with torch.no_grad():
        model.conv2.weight[1, 2, 0, 0] = bad
    refused(model, ValueError, "'conv2.weight'")
    refused(model, ValueError, "'conv2.weight'", data=None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_batches_that_are_not_finite_are_refused(bad: float) -> None:
    x = torch.randn(4, 3, 8, 8)
    x[1, 0, 0, 0] = bad
    refused(warm(Net()), ValueError, "batch 1", data=[torch.randn(4, 3, 8, 8), x])


def test_data_that_cannot_calibrate_is_refused() -> None:
    model = warm(Net())
    refused(model, octavo.CalibrationError, "data", data=[])
    refused(model, TypeError, "object", data=[object()])

    def fails(_model: nn.Module) -> None:
        raise KeyError("mine")

    for inplace in (False, True):
        with pytest.raises(KeyError, match="mine"):
            octavo.quantize(model, 4, fails, qat=True, inplace=inplace, progress=False)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_state_changes_in_training_mode_alone(method: str) -> None:
    trainee = trainee_of(qat_method=method).eval()
    before = state_of(trainee)
    for _ in range(3):
        trainee(torch.randn(8, 3, 8, 8) * 3).sum().backward()
    assert state_of(trainee) == before
    with torch.no_grad():  # Ranges move where gradients do not, as statistics of BatchNorm do.
        trainee.train()(torch.randn(8, 3, 8, 8) * 3)
    assert state_of(trainee) != before


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_any_strides(method: str) -> None:
    """Strided and expanded gradients give the bits of the same values in order."""
    start = QParams(0.1, 0 if method == "pact" else 3, 4)
    value = FakeQuantize(start, method, "x", Monitor()).eval()
    x = torch.randn(6, 8, requires_grad=True)
    wanted = [x, *value.parameters()]
    for dy in (
        torch.randn(1, 8).expand(6, 8),
        torch.randn(12, 16)[::2, 1::2],
        torch.randn(8, 6).t(),
    ):
        mine = torch.autograd.grad(value(x), wanted, dy)
        theirs = torch.autograd.grad(value(x), wanted, dy.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_and_autocast_modes_change_nothing(method: str) -> None:
    trainee = undropped(qat_method=method).eval()
    x = torch.randn(4, 3, 8, 8)
    expected = trainee(x).detach()
    with torch.no_grad():
        assert torch.equal(trainee(x), expected)
    with torch.inference_mode():
        assert torch.equal(trainee(x), expected)
    with torch.inference_mode():
        trainee.train()(x)  # Its ranges are no inference tensors and move.
    F.cross_entropy(trainee(x), torch.arange(4)).backward()


def test_a_frozen_model_does_not_train() -> None:
    frozen = octavo.freeze(trainee_of(), progress=False)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="qat=True"):
        frozen(x).sum().backward()


def test_other_shapes_and_types_of_input_are_refused_as_the_float_model_does() -> None:
    trainee = trainee_of()
    with pytest.raises(RuntimeError, match="channels"):
        trainee(torch.randn(4, 2, 8, 8))
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        trainee(torch.zeros(4, 3, 8, 8, dtype=torch.int64))


def test_freeze_and_verify_take_trainees_alone() -> None:
    model, trainee = warm(Net()), trainee_of()
    frozen = octavo.freeze(trainee, progress=False)
    for wrong, error, text in (
        (model, ValueError, "qat=True"),
        (frozen, ValueError, "qat=True"),
        (None, TypeError, "nn.Module"),
        (nn.DataParallel(trainee), TypeError, r"\.module"),
    ):
        with pytest.raises(error, match=text):
            octavo.freeze(wrong)
        with pytest.raises(error, match=text):
            octavo.verify(wrong, frozen, data())
    for wrong in (model, None, trainee):
        with pytest.raises(TypeError, match="frozen"):
            octavo.verify(trainee, wrong, data())
    with pytest.raises(octavo.CalibrationError, match="data"):
        octavo.verify(trainee, frozen, [])
