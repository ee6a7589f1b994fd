"""Trainees whose activations are dynamic: no data is needed, each row or image has a range."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo import ops
from octavo.nn.fake_quantize import Monitor
from octavo.nn.fake_quantize_dynamic import FakeQuantizeDynamic
from octavo.numerics.scheme import MIN_SCALE


class Mixer(nn.Module):
    """Rows of three dimensions, convolutions of one and two, images with and without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv1d(8, 8, 3, padding=1)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.conv(x).flatten(-2)).transpose(-2, -1)
        return self.fc2(F.gelu(self.fc1(self.norm(y)))).mean(-2)


def trained(bits: int = 4, steps: int = 5, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    trainee = octavo.quantize(Mixer(), bits, qat=True, progress=False, **kwargs)
    optimizer = torch.optim.SGD(trainee.parameters(), 0.1)
    x, target = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    losses = []
    for _ in range(steps):
        losses.append(F.cross_entropy(trainee(x), target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    return trainee.eval()


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_frozen_model_computes_what_was_trained(bits: int, isa: str) -> None:
    trainee = trained(bits)
    frozen = octavo.freeze(trainee, progress=False)
    assert {m.activations for m in frozen.modules() if hasattr(m, "activations")} == {"dynamic"}
    found = octavo.verify(trainee, frozen, [torch.randn(7, 3, 8, 8), torch.randn(1, 3, 10, 6)])
    assert found.holds and len(found.sites) == 4, str(found)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(9, 40) * torch.logspace(-6, 6, 9)[:, None],
        torch.rand(3, 40) + 1.0,
        -torch.rand(3, 40),
        torch.zeros(2, 40),
        torch.full((1, 40), 3e38) * torch.tensor([1.0, -1.0]).repeat(20),
        torch.full((2, 40), 1e-44),
    ],
    ids=["sizes", "positive", "negative", "zeros", "huge", "denormal"],
)
def test_codes_are_those_of_the_kernel(isa: str, x: Tensor) -> None:
    """A layer that multiplies by one gives what its input was rounded to."""
    one = nn.Linear(40, 40, bias=False)
    with torch.no_grad():
        one.weight.copy_(torch.eye(40))
    layer = octavo.quantize(one, 8, ranges="minmax", rounding="nearest", progress=False)
    assert torch.equal(layer.weight, torch.eye(40))
    with torch.no_grad():
        mine, kernels = FakeQuantizeDynamic("x", Monitor())(x), layer(x)
    step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)).clamp_max(3.4e38)[:, None] / 255
    # 127 * (1 / 127) is 1 to a unit in the last place: far less than a code.
    assert ((mine - kernels).abs() <= 1e-4 * step.clamp_min(MIN_SCALE)).all()


def test_gradients_pass() -> None:
    x = torch.randn(6, 50, requires_grad=True)
    dy = torch.randn(6, 50)
    y = FakeQuantizeDynamic("x", Monitor())(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    # The end of a range may round to a code beyond the last one, where it is clamped.
    assert (dx != dy).sum() <= 6 and ((dx == dy) | (dx == 0)).all()


def test_layers_keep_rows_as_codes_for_the_backward_pass() -> None:
    layer = octavo.quantize(nn.Linear(64, 8), 4, qat=True, progress=False)
    saved: list[Tensor] = []
    x = torch.randn(2, 16, 64, requires_grad=True)

    def keep(codes: Tensor, *args: object) -> Tensor:
        saved.append(codes)
        return true(codes, *args)

    true = torch.ops.octavo.fake_quantize_values
    y = layer(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.octavo, "fake_quantize_values", keep)
        y.sum().backward()
    assert (32, 64) in {tuple(codes.shape) for codes in saved if codes.dtype is torch.uint8}


def test_shapes_without_batch_and_without_rows() -> None:
    trainee = trained()
    x = torch.randn(3, 8, 8)
    assert torch.allclose(trainee(x), trainee(x[None])[0], atol=1e-6)
    linear = octavo.quantize(nn.Linear(8, 4), 8, qat=True, progress=False)
    assert linear(torch.randn(8)).shape == (4,) and linear(torch.randn(3, 0, 8)).shape == (3, 0, 4)
    assert linear(torch.randn(4, 6, 8)[:, ::2].transpose(0, 1)).shape == (3, 4, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(3, 7))


def test_values_that_are_not_finite_are_reported_and_enter_no_range() -> None:
    trainee = octavo.quantize(nn.Sequential(nn.Linear(8, 4)), 8, qat=True, progress=False)
    x = torch.randn(3, 8)
    clean = trainee(x)
    x[1, 2], x[2, 0] = float("inf"), float("nan")
    with pytest.warns(RuntimeWarning, match="input of layer '0' must be finite, got 2 NaN.*step 2"):
        y = trainee(x)
    assert torch.equal(y[0], clean[0]) and y[2].isnan().all()
    trainee.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainee(x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore")
def test_compile(backend: str) -> None:
    trainee = trained(8).train()
    x = torch.randn(4, 3, 8, 8)
    loss = trainee(x).square().sum()
    want = torch.autograd.grad(loss, list(trainee.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(trainee, backend=backend, fullgraph=True)
    got = torch.autograd.grad(compiled(x).square().sum(), list(trainee.parameters()))
    # Compiled code orders its float sums as it likes: a code may differ.
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm() + 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
def test_autocast_copies_pickles_and_files(symmetric: bool, tmp_path: Path) -> None:
    trainee = trained(symmetric=symmetric).train()
    x = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = trainee(x)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16 and y.isfinite().all()
    trainee.eval()
    octavo.save(trainee, tmp_path / "trainee.safetensors")
    loaded = octavo.load(tmp_path / "trainee.safetensors", Mixer())
    for twin in (copy.deepcopy(trainee), pickle.loads(pickle.dumps(trainee)), loaded):
        assert torch.equal(twin(x), trainee(x))
        assert torch.equal(octavo.freeze(twin, progress=False)(x), octavo.freeze(trainee)(x))


def test_static_layers_that_no_batch_reached_are_dynamic() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor, both: bool = False) -> Tensor:
            y = self.a(x)
            return self.b(y) if both else y

    trainee = octavo.quantize(Branch(), 8, torch.randn(8, 16), qat=True, progress=False).eval()
    frozen = octavo.freeze(trainee, progress=False)
    x = torch.randn(4, 16)
    assert frozen.b.activations == "dynamic"
    assert torch.allclose(frozen(x, True), trainee(x, True), atol=1e-5)
    rows = trainee.a(x)
    (low, high), _ = ops.minmax_per_channel(rows, 0)
    step = (high.clamp_min(0) - low.clamp_max(0)) / 255
    seen = trainee.b.value_quantizers["input"](rows.detach())
    assert ((seen - rows).abs() <= step[:, None] * 1.01).all() and not torch.equal(seen, rows)
