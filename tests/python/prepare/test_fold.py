"""Folding: the same function with fewer layers, and only where that is safe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from octavo.prepare.fold import fold


def with_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


FOLDABLE = {
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
        (2, 3, 6, 6),
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)),
        (2, 4, 6, 6),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8, affine=False)),
        (2, 3, 9),
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)), (4, 5)),
}


@pytest.mark.parametrize("name", FOLDABLE, ids=str)
@torch.no_grad()
def test_same_function(name: str) -> None:
    make, shape = FOLDABLE[name]
    model, x = with_statistics(make()), torch.randn(shape)
    expected = model.double()(x.double())
    model.float()
    folded = fold(model, ((x,), {}))
    assert folded.batch_norms == (("1", "0"),) and "1 folded into 0" in str(folded)
    assert type(model[1]) is nn.Identity and not model[1].training
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_computed_in_double_and_rounded_once() -> None:
    layer, norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
    model = with_statistics(nn.Sequential(layer, norm))
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = (layer.weight.detach().double() * factor[:, None, None, None]).float()
    shift = (layer.bias.detach().double() - norm.running_mean.double()) * factor
    fold(model)
    assert torch.equal(layer.weight, weight)
    torch.testing.assert_close(
        layer.bias.detach(), (shift + norm.bias.detach().double()).float(), rtol=0, atol=1e-7
    )


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(self.conv(x)))


class CalledFromOutside(nn.Module):
    """The block alone could be folded, but its untraceable parent calls the convolution too."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > -1e9:
            x = self.block[0](x)
        return self.block(x)


SAFE = {
    "two readers": TwoReaders,
    "called twice": CalledTwice,
    "called from outside": CalledFromOutside,
    "batch norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),
    "relu between": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
    "no statistics": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("name", SAFE, ids=str)
@torch.no_grad()
def test_left_alone(name: str) -> None:
    model, x = with_statistics(SAFE[name]()), torch.randn(2, 3, 5, 5)
    expected = model(x)
    assert fold(model, ((x,), {})).batch_norms == ()
    assert torch.equal(model(x), expected)


def test_linear_needs_an_example() -> None:
    make, _ = FOLDABLE["linear"]
    assert fold(with_statistics(make())).batch_norms == ()
    rows = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    assert fold(rows, ((torch.randn(2, 8, 8),), {})).batch_norms == ()


def test_hooks_of_the_norm_stay() -> None:
    make, shape = FOLDABLE["conv2d"]
    model, seen = with_statistics(make()), []
    model[1].register_forward_hook(lambda m, args, output: seen.append(output.shape))
    fold(model)
    model(torch.randn(shape))
    assert seen == [(2, 8, 4, 4)]


def test_a_hooked_layer_keeps_its_result() -> None:
    make, _ = FOLDABLE["conv2d"]
    model = with_statistics(make())
    model[0].register_forward_hook(lambda m, args, output: None)
    assert fold(model).batch_norms == ()


NORMS: dict[str, Any] = {
    "weight_norm hook": weight_norm,
    "spectral_norm hook": spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", NORMS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_materialised(name: str) -> None:
    model = nn.Sequential(NORMS[name](nn.Linear(6, 6)), nn.ReLU()).eval()
    x = torch.randn(3, 6)
    expected = model(x)
    folded = fold(model)
    assert folded.materialised == ("0.weight",) and type(model[0]) is nn.Linear
    assert isinstance(model[0].weight, nn.Parameter) and not model[0]._forward_pre_hooks
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


class NormAct(nn.BatchNorm2d):
    """Like timm's: a BatchNorm with a forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(x)


class Reading(nn.Module):
    """Reads a tensor of the normalisation besides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), NormAct(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.weight.mean()


@torch.no_grad()
def test_a_normalisation_inside_of_a_forward_is_folded_and_neutralised() -> None:
    model, x = (
        with_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8))),
        torch.randn(3, 3, 8, 8),
    )
    expected = model(x)
    folded = fold(model, ((x[:2],), {}))
    assert folded.batch_norms == (("1", "0"),)
    assert not model[1].running_mean.any() and bool((model[1].weight == 1).all())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    (flow,) = folded.captured.flows
    assert [step.kind for step in flow.steps] == ["conv", "identity", "unary"]
    assert [site.name for site in folded.captured.sites] == ["0"]


@torch.no_grad()
def test_a_normalisation_that_others_read_is_not_folded() -> None:
    model, x = with_statistics(Reading()), torch.randn(2, 3, 8, 8)
    expected = model(x)
    assert fold(model, ((x,), {})).batch_norms == ()
    assert torch.equal(model(x), expected)
