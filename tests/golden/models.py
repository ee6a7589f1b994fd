"""Twelve small networks and their inputs, the same on every machine, for files and calls of earlier versions.

Weights and inputs are small integers over a power of two. What torch computes of them in float is then
exact or so far from a tie that no order of summation changes a code, and outputs can be compared by SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def drawn(*shape: int, seed: int, over: float = 16.0, limit: int = 32) -> Tensor:
    """Integers in -limit..limit over a power of two."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator).float() / over


def filled(model: nn.Module, seed: int) -> nn.Module:
    """The model with drawn parameters and, in BatchNorm, drawn statistics; in evaluation mode."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(
                drawn(*parameter.shape, seed=1000 * seed + index, over=256.0, limit=100)
            )
        for index, module in enumerate(model.modules()):
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                size = module.num_features
                module.weight.copy_(1.0 + drawn(size, seed=seed + index, over=64.0, limit=20))
                module.running_mean.copy_(drawn(size, seed=seed + index + 1))
                module.running_var.copy_(2.0 + drawn(size, seed=seed + index + 2))
    return model.eval()


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual add, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.a = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.b = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.b(self.a(x)) + x)
        return self.head(self.pool(x).mean((2, 3)))


class Mobile(nn.Module):
    """A depthwise convolution, squeeze-and-excite, a hard swish, a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16, 16, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 1),
            nn.Hardsigmoid(),
        )
        self.point = nn.Conv2d(32, 24, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        y = y * self.squeeze(y)
        return self.head(self.point(torch.cat([x, y], 1)))


class Attention(nn.Module):
    """Attention in which every query sees one key, so that the float softmax is exact, and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).fill_diagonal_(0.0).roll(1, 0)
        y, _ = self.attention(x, x, x, attn_mask=mask, need_weights=False)
        return self.down(torch.relu(self.up(y)))


class Recurrent(nn.Module):
    """A recurrent network and a linear layer on its outputs."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(16, 32, batch_first=True, **options)
        self.head = nn.Linear(64 if options.get("bidirectional") else 32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Words(nn.Module):
    """A look-up and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 48)
        self.head = nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def images(seed: int, count: int = 4) -> Tensor:
    return drawn(count, 3, 16, 16, seed=seed)


def rows(seed: int, count: int = 24) -> Tensor:
    return drawn(count, 64, seed=seed)


def sequences(seed: int) -> Tensor:
    return drawn(3, 7, 16, seed=seed)


def tokens(seed: int) -> Tensor:
    return drawn(3, 5, 32, seed=seed)


def words(seed: int) -> Tensor:
    return torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(seed))


# The network of a name, and what makes its inputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "residual": (Residual, images),
    "mobile": (Mobile, images),
    "mlp": (mlp, rows),
    "attention": (Attention, tokens),
    "lstm": (lambda: Recurrent(nn.LSTM, bidirectional=True), sequences),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), sequences),
    "words": (Words, words),
}
