"""Trainees in everything a training loop may be made of: one test each."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_trainee import Net, data, step, trainee_of, warm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import octavo
from octavo.nn.fake_quantize import FakeQuantize
from octavo.runtime.trained_forward import trained_forward

LABELS = torch.arange(8) % 5
WIDTHS = {"ste": (8, 8), "lsq": (4, 4), "lsq+": (4, 4), "pact": (4, 4), "dorefa": (4, 4)}
EVERY_METHOD = pytest.mark.parametrize("method", list(WIDTHS))


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def undropped(**kwargs: Any) -> nn.Module:
    trainee = trainee_of(**kwargs)
    trainee.drop.p = 0.0
    return trainee


class Plain(nn.Module):
    """No dropout: the same in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Checkpointed(Plain):
    """Runs its middle again in the backward pass."""

    enabled, reentrant = True, False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint(self.body, x, use_reentrant=self.reentrant) if self.enabled else self.body(x)
        return self.fc(x.mean((2, 3)))


@EVERY_METHOD
def test_autocast(method: str) -> None:
    torch.manual_seed(0)
    trainee = undropped(bits=WIDTHS[method], qat_method=method)
    x = torch.randn(8, 3, 8, 8)
    optimizer = torch.optim.SGD(trainee.parameters(), 0.05)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            y = trainee(x)
            loss = F.cross_entropy(y.float(), LABELS)
        assert y.dtype is torch.bfloat16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in trainee.state_dict().items():
        assert not tensor.is_floating_point() or tensor.dtype is torch.float32, name
        assert bool(torch.isfinite(tensor).all()), name
    trainee.eval()
    assert octavo.verify(trainee, octavo.freeze(trainee, progress=False), [x]).holds


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@EVERY_METHOD
def test_gradient_checkpointing(method: str, reentrant: bool) -> None:
    """The repeated forward moves no range, and gradients are those without checkpointing."""
    torch.manual_seed(0)
    x, bits = torch.randn(8, 3, 8, 8), WIDTHS[method]
    two = octavo.quantize(
        warm(Checkpointed()), bits, data=data(), qat=True, qat_method=method, progress=False
    )
    one = copy.deepcopy(two)
    one.enabled, two.reentrant = False, reentrant
    assert trained_forward(two) is None and trained_forward(two.body) is not None
    results = []
    for trainee in (one, two):
        calls: list[int] = []
        for module in trainee.body.modules():
            if isinstance(module, FakeQuantize):
                module.register_forward_hook(lambda *_, c=calls: c.append(1))
        F.cross_entropy(trainee(x), LABELS).backward()
        results.append((grads(trainee), len(calls)))
    assert results[1][1] == 2 * results[0][1] > 0  # It did run twice.
    mine, theirs = results[0][0], results[1][0]
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    ranges = {n: b for n, b in two.named_buffers() if n.endswith("range")}
    seen = {n: b.clone() for n, b in ranges.items()}
    again = copy.deepcopy(two)
    again.load_state_dict(two.state_dict())
    y = again(x)
    moved = {n: b.clone() for n, b in again.named_buffers() if n.endswith("range")}
    F.cross_entropy(y, LABELS).backward()
    for n, b in again.named_buffers():
        if n.endswith("range"):
            assert torch.equal(b, moved[n]), n
    assert method != "ste" or any(not torch.equal(moved[n], seen[n]) for n in seen)


def test_gradient_accumulation() -> None:
    trainee = octavo.quantize(warm(Plain()), (4, 4), data=data(), qat=True, progress=False)
    for module in trainee.modules():
        if isinstance(module, (nn.BatchNorm2d, FakeQuantize)):
            module.eval()  # So that halves and the whole see the same network.
    x = torch.randn(8, 3, 8, 8)
    F.cross_entropy(trainee(x), LABELS).backward()
    whole = grads(trainee)
    trainee.zero_grad()
    losses = [
        F.cross_entropy(trainee(part), y) / 2
        for part, y in zip(x.split(4), LABELS.split(4), strict=True)
    ]
    for loss in losses:  # Both forwards came first.
        loss.backward()
    for name, gradient in grads(trainee).items():
        assert torch.allclose(gradient, whole[name], atol=1e-5), name


def test_functional_call() -> None:
    trainee = undropped().eval()
    x = torch.randn(4, 3, 8, 8)
    parameters = {n: p.detach().clone() for n, p in trainee.named_parameters()}
    assert torch.equal(torch.func.functional_call(trainee, parameters, (x,)), trainee(x))
    parameters["fc.weight"] = torch.zeros_like(parameters["fc.weight"])
    got = torch.func.functional_call(trainee, parameters, (x,))
    assert torch.equal(got, trainee.fc.bias.detach().expand(4, 5))


# Dynamo makes autograd.Function objects and looks at .grad of inner tensors, of which torch warns.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@EVERY_METHOD
def test_compile(method: str, backend: str) -> None:
    torch._dynamo.reset()  # It compiles one code object eight times at most.
    torch.manual_seed(0)
    trainee = undropped(bits=WIDTHS[method], qat_method=method)
    twin = copy.deepcopy(trainee)
    x = torch.randn(8, 3, 8, 8)
    twin.eval()(x)
    twin.train()
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (trainee, twin)]
    for seed in range(3):
        for model, run, optimizer in zip(
            (trainee, twin), (trainee, compiled), optimizers, strict=True
        ):
            del model
            torch.manual_seed(seed)
            loss = F.cross_entropy(run(x), LABELS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    # Dropout at p = 0.1 in between: where the compiled graph draws it otherwise, weights drift apart a little.
    for (name, mine), theirs in zip(
        trainee.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        assert torch.allclose(mine.float(), theirs.float(), atol=0.02), name


def test_optimizer_before_and_after_train_alike() -> None:
    """ste: the very Parameters, so an optimizer made before the trainee trains it."""
    results = []
    for before in (True, False):
        torch.manual_seed(0)
        model = warm(Plain())
        optimizer = torch.optim.Adam(model.parameters(), 0.01) if before else None
        trainee = octavo.quantize(model, (8, 8), data=data(), qat=True, progress=False)
        if optimizer is None:
            optimizer = torch.optim.Adam(trainee.parameters(), 0.01)
        for _ in range(3):
            step(trainee, optimizer)
        results.append(trainee.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True)
    )


def test_parts_of_a_model_can_be_kept_still() -> None:
    trainee = undropped()
    trainee.conv1.weight.requires_grad_(False)
    before = trainee.conv1.weight.clone()
    step(trainee, torch.optim.SGD([p for p in trainee.parameters() if p.requires_grad], 0.1))
    assert torch.equal(trainee.conv1.weight, before)


class Lightning(nn.Module):
    """The shape of a trainer's module: the trainee is a child, the optimizer comes from a method."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


def test_inside_a_trainers_module() -> None:
    wrapper = Lightning(undropped())
    optimizer = wrapper.configure_optimizers()
    for epoch in range(2):
        wrapper.train()
        for _ in range(2):
            optimizer.zero_grad()
            wrapper.training_step((torch.randn(8, 3, 8, 8), LABELS)).backward()
            optimizer.step()
        wrapper.eval()
        before = {n: b.clone() for n, b in wrapper.named_buffers()}
        with torch.no_grad():
            wrapper.training_step((torch.randn(8, 3, 8, 8), LABELS))
        assert all(torch.equal(b, before[n]) for n, b in wrapper.named_buffers()), epoch
    state = copy.deepcopy(wrapper.state_dict())
    wrapper.load_state_dict(state)
    frozen = octavo.freeze(wrapper.network, progress=False)
    assert octavo.verify(wrapper.network, frozen, data()).holds


def test_inference_mode_then_training() -> None:
    trainee = undropped()
    with torch.inference_mode():
        trainee.eval()(torch.randn(2, 3, 8, 8))
    trainee.train()
    step(trainee, torch.optim.SGD(trainee.parameters(), 0.1))


def test_two_processes() -> None:
    script = Path(__file__).parents[2] / "support" / "ddp_training.py"
    paths = os.pathsep.join(p for p in sys.path if p)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
        ],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "same state" in result.stdout


# ---- schedule, statistics, distillation


def test_schedule_freezes_in_order() -> None:
    trainee = undropped(bits=8)
    schedule = octavo.TrainingSchedule(trainee, steps=8, freeze_ranges=0.5, freeze_statistics=0.75)
    optimizer = torch.optim.SGD(trainee.parameters(), 0.01)
    moved_ranges, moved_statistics = [], []
    for _ in range(8):
        ranges = trainee.conv2.value_quantizers["relu_1"].range.clone()
        mean = trainee.bn1.running_mean.clone()
        trainee.train()  # As at the start of an epoch.
        step(trainee, optimizer)
        schedule.step()
        moved_ranges.append(not torch.equal(trainee.conv2.value_quantizers["relu_1"].range, ranges))
        moved_statistics.append(not torch.equal(trainee.bn1.running_mean, mean))
    assert moved_ranges == [True] * 4 + [False] * 4
    assert moved_statistics == [True] * 6 + [False] * 2
    assert str(schedule) == "TrainingSchedule(step 8 of 8, ranges frozen, statistics frozen)"
    assert trainee.training and not trainee.bn1.training
    frozen = octavo.freeze(trainee, progress=False)
    assert octavo.verify(trainee, frozen, data()).holds
    assert "train" not in vars(frozen.bn1)
    twin = copy.deepcopy(trainee).train()
    assert not twin.bn1.training and twin.bn1.__dict__["train"].args[0] is twin.bn1


def test_schedule_goes_on_where_it_was() -> None:
    trainee = undropped(bits=8)
    schedule = octavo.TrainingSchedule(trainee, steps=4, freeze_ranges=0.5, freeze_statistics=0.5)
    schedule.step()
    schedule.step()
    other = undropped(bits=8)
    resumed = octavo.TrainingSchedule(other, steps=1)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.step_count == 2 and resumed.steps == 4
    with pytest.raises(
        ValueError, match=r"freeze_ranges must lie in 0..1, a fraction of the steps, got 30"
    ):
        octavo.TrainingSchedule(other, 4, freeze_ranges=30)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        octavo.TrainingSchedule(other, 0)
    with pytest.raises(
        ValueError, match=r"trainee must be the result of octavo.quantize\(..., qat=True\)"
    ):
        octavo.TrainingSchedule(Net(), 4)


def test_reestimated_statistics_are_those_of_the_data() -> None:
    trainee = undropped()
    with torch.no_grad():
        trainee.bn1.running_mean.fill_(7.0)
        trainee.bn1.running_var.fill_(0.01)
    before = {n: b.clone() for n, b in trainee.named_buffers() if "bn" not in n}
    batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    assert octavo.reestimate_batch_norm(trainee, batches) is trainee
    quantizers = trainee.conv1.value_quantizers
    quantizer = next(q for k, q in quantizers.items() if k.startswith("x"))
    x = quantizer.eval()(torch.cat(batches))
    y = F.conv2d(x, trainee.conv1.weight_quantizer.eval()(trainee.conv1.weight), padding=1)
    assert torch.allclose(trainee.bn1.running_mean, y.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(trainee.bn1.running_var, y.var((0, 2, 3), correction=0), atol=1e-4)
    assert all(torch.equal(b, before[n]) for n, b in trainee.named_buffers() if n in before)
    assert trainee.training and trainee.bn1.training and trainee.bn1.momentum == 0.1


def test_distillation() -> None:
    torch.manual_seed(0)
    model = warm(Plain())
    trainee = octavo.quantize(model, (4, 4), data=data(), qat=True, progress=False)
    criterion = octavo.DistillationLoss(model, temperature=2.0)
    teacher = {n: p.clone() for n, p in criterion.teacher.named_parameters()}
    optimizer = torch.optim.SGD(trainee.parameters(), 0.1)
    x = torch.randn(16, 3, 8, 8)
    labels = torch.arange(16) % 5
    criterion.train()
    assert not criterion.teacher.training
    with torch.no_grad():
        expected = criterion.teacher(x)
        got = trainee(x)
        soft = F.softmax(expected / 2, -1)
        kl = (soft * (soft.log() - F.log_softmax(got / 2, -1))).sum(1).mean() * 4
        assert torch.allclose(criterion(x, got), kl, atol=1e-5)
        assert torch.allclose(
            criterion(x, got, labels), kl + F.cross_entropy(got, labels), atol=1e-5
        )
    first = criterion(x, trainee(x))
    for _ in range(20):
        loss = criterion(x, trainee(x))  # No labels.
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.8 * float(first.detach())
    assert all(torch.equal(p, teacher[n]) for n, p in criterion.teacher.named_parameters())
    assert not any(p.requires_grad for p in criterion.parameters())


def test_distillation_of_features_and_by_an_integer_teacher() -> None:
    model = warm(Plain())
    trainee = octavo.quantize(model, (4, 4), data=data(), qat=True, progress=False)
    criterion = octavo.DistillationLoss(
        model, features=["body.1"], student=trainee, feature_weight=0.5
    )
    x = torch.randn(8, 3, 8, 8)
    both = criterion(x, trainee(x), LABELS)
    plain = octavo.DistillationLoss(model)
    y = trainee(x)
    criterion._seen.clear()
    assert float(both.detach()) > float(plain(x, y, LABELS).detach())
    both.backward()
    with pytest.raises(
        RuntimeError,
        match=r"feature 'body.1' must have been computed, got no call of it in the student",
    ):
        criterion(x, y.detach(), LABELS)
    teacher = octavo.quantize(model, 8, data=data(), progress=False)
    quick = octavo.DistillationLoss(teacher)
    assert torch.isfinite(quick(x, trainee(x), LABELS))


def test_distillation_refuses() -> None:
    model = Plain()
    with pytest.raises(TypeError, match="teacher must be an nn.Module, got 'resnet'"):
        octavo.DistillationLoss("resnet")
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        octavo.DistillationLoss(model, 0)
    with pytest.raises(ValueError, match="student must be the trainee"):
        octavo.DistillationLoss(model, features=["body"])
    with pytest.raises(ValueError, match="features must be names of modules, got 'layer9'"):
        octavo.DistillationLoss(model, features=["layer9"], student=model)
    criterion = octavo.DistillationLoss(model)
    with pytest.raises(
        ValueError, match=r"outputs must have the teacher's shape \[2, 5\], got \[2, 4\]"
    ):
        criterion(torch.randn(2, 3, 8, 8), torch.randn(2, 4))
    with pytest.raises(TypeError, match="outputs must be tensors of logits, got a dict"):
        criterion(torch.randn(2, 3, 8, 8), {"logits": torch.randn(2, 5)})
