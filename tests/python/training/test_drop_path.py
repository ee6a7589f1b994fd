"""Stochastic depth in trainees: whatever drops in training only is a step of one captured forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.graph.trace import returns_its_input
from octavo.runtime.trained_forward import trained_forward
from octavo.training.trainee import training_of


class DropPath(nn.Module):
    """As timm and transformers write it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Scaled(nn.Module):
    """Not the identity in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 2 * x


class Block(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.bn(self.conv(x)))
        y += x
        return F.relu(y)


class Net(nn.Module):
    def __init__(self, *drops: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(*map(Block, drops))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_which_modules_return_their_input() -> None:
    for module in (DropPath(0.5), Noise()):
        for mode in (True, False):
            assert returns_its_input(module.train(mode))
            assert module.training is mode
    for module in (Scaled(), nn.ReLU(), nn.Linear(2, 2), nn.Sequential(DropPath(0.1))):
        assert not returns_its_input(module)


def test_one_region_and_one_step_a_site() -> None:
    torch.manual_seed(0)
    model = Net(DropPath(0.5), Noise())
    data = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    trainee = octavo.quantize(model, (4, 4), data=data, qat=True, progress=False).train()
    training = training_of(trainee)
    assert training is not None
    (flow,) = training.plan.flows
    assert len(flow.regions) == 1 and trained_forward(trainee) is not None
    # It does drop: of a half of the samples the first block passes on its input.
    x, seen = data[0], {}
    handles = [
        trainee.get_submodule(n).register_forward_hook(lambda m, a, y, n=n: seen.update({n: y}))
        for n in ("blocks.0.bn", "blocks.0.drop")
    ]
    trainee(x)
    dropped = seen["blocks.0.drop"].flatten(1).abs().amax(1) == 0
    assert 0 < int(dropped.sum()) < 16
    assert torch.equal(seen["blocks.0.drop"][~dropped], 2 * seen["blocks.0.bn"][~dropped])
    for handle in handles:
        handle.remove()
    optimizer = torch.optim.SGD(trainee.parameters(), 0.05)
    for _ in range(3):
        loss = F.cross_entropy(trainee(x), torch.arange(16) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frozen = octavo.freeze(trainee, progress=False)
    found = octavo.verify(trainee, frozen, data)
    assert found.holds and len(found.sites) >= 5, str(found)
    assert torch.equal(frozen(x), frozen(x)) and torch.equal(frozen.train()(x), frozen.eval()(x))
