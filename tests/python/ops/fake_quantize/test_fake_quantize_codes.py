"""saved_as_codes: what autograd saves of fake-quantized values, and that gradients do not notice."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from octavo import ops

OPS = torch.ops.octavo
LEVELS = torch.tensor([-127, -64, -32, 0, 32, 64, 127], dtype=torch.int8)


def quantizers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Every kind of fake quantization, of [O, I, ...] with channels in front where it has some."""
    step = torch.tensor([0.11], requires_grad=True)
    zero = torch.tensor([6.3])
    state = torch.tensor([-1.5, 2.0])

    def steps(x: Tensor) -> Tensor:
        return torch.linspace(0.05, 0.3, x.shape[0])

    return {
        "given": lambda x: ops.fake_quantize(x, torch.tensor(0.02), torch.tensor(100.0), qmin=0, qmax=255),
        "channels": lambda x: ops.fake_quantize(x, steps(x), qmin=-8, qmax=7, axis=0),
        "last": lambda x: ops.fake_quantize(
            x, torch.linspace(0.05, 0.3, x.shape[-1]), torch.arange(x.shape[-1]) % 8.0, qmin=-8, qmax=7, axis=-1
        ),
        "groups": lambda x: ops.fake_quantize(
            x, 0.1 + torch.rand(x.shape[0], -(-x[0].numel() // 16)), qmin=-8, qmax=7, group_size=16
        ),
        "learned": lambda x: ops.fake_quantize_learned(x, step, zero, qmin=0, qmax=15, relu=True),
        "clipped": lambda x: ops.fake_quantize_clipped(x, torch.tensor([-1.5]), bits=4),
        "levels": lambda x: ops.fake_quantize_levels(x, LEVELS, steps(x) / 60, axis=0),
        "observed": lambda x: ops.observe_fake_quantize(x, state, qmin=0, qmax=255, momentum=0.1).y,
    }  # fmt: skip


def kept(node: object, name: str) -> Tensor | None:
    """The codes that a node keeps; None where it keeps values."""
    packed = getattr(node, f"_raw_saved_{name}").data
    return packed.codes.codes if hasattr(packed, "codes") else None


def layers() -> dict[
    str, tuple[Callable[[Tensor, Tensor], Tensor], list[int], list[int], list[str]]
]:
    return {
        "conv": (lambda x, w: F.conv2d(x, w, padding=1), [2, 5, 6, 7], [4, 5, 3, 3], ["input", "weight"]),
        "conv of padded": (
            lambda x, w: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), w), [2, 5, 6, 7], [4, 5, 3, 3], ["weight"],
        ),
        "conv1d": (lambda x, w: F.conv1d(x, w, stride=2), [2, 5, 9], [4, 5, 3], ["weight"]),
        "linear": (F.linear, [6, 20], [8, 20], ["self", "mat2"]),
        "matmul": (torch.matmul, [6, 20], [20, 8], ["self", "mat2"]),
    }  # fmt: skip


@pytest.mark.parametrize("layer", layers())
@pytest.mark.parametrize("kind", quantizers())
def test_gradients_are_the_same_bits(kind: str, layer: str, isa: str) -> None:
    torch.manual_seed(0)
    call, x_shape, w_shape, names = layers()[layer]
    x, w = torch.randn(x_shape), torch.randn(w_shape)
    if layer == "conv":
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for coded in (False, True):
        torch.manual_seed(1)
        quantize = quantizers()[kind]
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        values = [quantize(leaf) for leaf in leaves]
        with ops.saved_as_codes(*values) if coded else nullcontext():
            y = call(*values)
        if coded:
            assert y.grad_fn is not None
            for name in names:
                codes = kept(y.grad_fn, name)
                assert codes is not None and codes.dtype is torch.uint8
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
    for got, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(got, expected)


def conv_of(x: Tensor, w: Tensor) -> tuple[Tensor, weakref.ref[Tensor]]:
    values = ops.fake_quantize(x, torch.tensor(0.1), qmin=-8, qmax=7)
    with ops.saved_as_codes(values):
        y = F.conv2d(values, w)
    return y, weakref.ref(values)


def test_values_are_freed_and_codes_too() -> None:
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    gc.disable()
    try:
        y, values = conv_of(x, w)
        assert values() is None
        codes = weakref.ref(kept(y.grad_fn, "input"))
        assert codes() is not None
        y.sum().backward()
        assert codes() is None
    finally:
        gc.enable()


def test_two_readers_share_codes() -> None:
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    values = ops.fake_quantize(x, torch.tensor(0.1), qmin=-8, qmax=7)
    ys = []
    for _ in range(2):
        with ops.saved_as_codes(values):
            ys.append(F.conv2d(values, w))
    assert kept(ys[0].grad_fn, "input") is kept(ys[1].grad_fn, "input")
    (ys[0] + ys[1]).sum().backward()


def test_graph_kept_and_differentiated_twice() -> None:
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    y, _ = conv_of(x, w)
    first = torch.autograd.grad(y.square().sum(), [x, w], retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), [x, w], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    (dw,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(dw.square().sum(), w)
    values = ops.fake_quantize(x.detach(), torch.tensor(0.1), qmin=-8, qmax=7)
    (dw,) = torch.autograd.grad(F.conv2d(values, w).square().sum(), w, create_graph=True)
    assert torch.equal(second, torch.autograd.grad(dw.square().sum(), w)[0])


def test_steps_that_move_meanwhile() -> None:
    """An optimizer may change the very tensors between forward and backward."""
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    scale = torch.tensor(0.1)
    values = ops.fake_quantize(x, scale, qmin=-8, qmax=7)
    with ops.saved_as_codes(values):
        y = F.conv2d(values, w)
    expected = torch.autograd.grad(F.conv2d(values, w).sum(), w, retain_graph=True)[0]
    scale.fill_(7.0)
    assert torch.equal(torch.autograd.grad(y.sum(), w)[0], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_without_codes_are_kept(bad: float) -> None:
    x, w = torch.randn(1, 3, 5, 5), torch.randn(2, 3, 3, 3, requires_grad=True)
    x[0, 1, 2, 2] = bad
    x.requires_grad_()
    scale = torch.tensor([3e38 if bad > 0 else 0.1])
    values = ops.fake_quantize(x, scale, qmin=-8, qmax=7)
    assert not bool(torch.isfinite(values).all())
    _, exact = OPS.fake_quantize_codes(values.detach(), scale, None, -8, 7, None, 0, False)
    assert int(exact) == 0
    with ops.saved_as_codes(values):
        y = F.conv2d(values, w)
    assert kept(y.grad_fn, "input") is None
    (dw,) = torch.autograd.grad(y.sum(), w)
    assert torch.equal(dw.isnan(), torch.autograd.grad(F.conv2d(values, w).sum(), w)[0].isnan())


def changed(y: Tensor) -> Tensor:
    with torch.no_grad():
        y.add_(1.0)
    return y


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "made by another node": lambda y: y * 1.0,
    "changed in place": lambda y: y.mul_(2.0),
    "changed unseen": changed,
    "detached": lambda y: y.detach(),
    "in another type": lambda y: y.double(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_are_saved_as_they_are(name: str) -> None:
    x, w = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 3, 3, requires_grad=True)
    y = OTHERS[name](ops.fake_quantize(x, torch.tensor(0.1), qmin=-8, qmax=7))
    w = w.to(y.dtype)
    with ops.saved_as_codes(y):
        z = F.conv2d(y, w)
    (dw,) = torch.autograd.grad(z.sum(), w)
    assert torch.equal(dw, torch.autograd.grad(F.conv2d(y.detach(), w).sum(), w)[0])


def test_what_is_saved_as_it_is_must_stay_so() -> None:
    x, w = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 3, 3) * 1.0
    values = ops.fake_quantize(x, torch.tensor(0.1), qmin=-8, qmax=7)
    with ops.saved_as_codes(values):
        y = F.conv2d(values, w)
    w.add_(1.0)
    with pytest.raises(
        RuntimeError,
        match=r"a tensor of shape \[2, 3, 3, 3\] must be as it was in the forward pass, got one that was modified",
    ):
        y.sum().backward()


def test_hooks_of_the_user_see_values() -> None:
    x, w = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randn(2, 3, 3, 3, requires_grad=True)
    seen: list[torch.dtype] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.dtype)
        return tensor.detach()

    values = ops.fake_quantize(x, torch.tensor(0.1), qmin=-8, qmax=7)
    with saved_tensors_hooks(pack, lambda t: t), ops.saved_as_codes(values):
        y = F.conv2d(values, w)
    assert seen == [torch.float32] * 2
    y.sum().backward()
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"), ops.saved_as_codes(values):
        F.conv2d(values, w)
    with torch.no_grad(), ops.saved_as_codes(values):
        F.conv2d(values, w)


def test_operators_check() -> None:
    y, scale = torch.zeros(4), torch.tensor([0.1])
    with pytest.raises(RuntimeError, match="fake_quantize_codes: qmax"):
        OPS.fake_quantize_codes(y, scale, None, -128, 200, None, 0, False)
    with pytest.raises(RuntimeError, match="fake_quantize_codes: y"):
        OPS.fake_quantize_codes(y.half(), scale, None, 0, 15, None, 0, False)
    with pytest.raises(RuntimeError, match="fake_quantize_values: codes"):
        OPS.fake_quantize_values(y, scale, None, 0, 15, None, 0, False)


HUGE = (-(2**63), -(2**63) + 1, -(2**31) - 1, 2**31, 2**63 - 256, 2**63 - 1)


@pytest.mark.parametrize("low", HUGE)
@pytest.mark.parametrize("high", [*HUGE, 7])
def test_bounds_near_the_ends_of_int64_are_refused(low: int, high: int) -> None:
    """No sum of them is formed before they are known to be small (a signed overflow)."""
    x, scale = torch.randn(4, 6), torch.tensor([0.1])
    codes = torch.zeros(4, 6, dtype=torch.uint8)
    for op, values in ((OPS.fake_quantize_codes, x), (OPS.fake_quantize_values, codes)):
        with pytest.raises(RuntimeError, match=r"fake_quantize: qm(in|ax): expected -128\.\."):
            op(values, scale, None, low, high, None, 0, False)
    with pytest.raises(RuntimeError, match=r"fake_quantize: qm(in|ax): expected -128\.\."):
        OPS.fake_quantize(x, scale, None, low, high, None, 0, False, False)
    with pytest.raises(RuntimeError, match=r"observe_fake_quantize: qm(in|ax): expected -12"):
        OPS.observe_fake_quantize(
            x, torch.zeros(2), low, high, 0.1, None, False, False, True, False
        )


@pytest.mark.parametrize("group_size", [64, 2**31, 2**62, 2**63 - 16])
def test_a_group_may_be_longer_than_a_row(group_size: int) -> None:
    x, scale = torch.randn(3, 40), torch.tensor([[0.1], [0.2], [0.3]])
    y = OPS.fake_quantize(x, scale, None, -8, 7, None, group_size, False, False)
    assert torch.equal(y, OPS.fake_quantize(x, scale.view(3), None, -8, 7, 0, 0, False, False))


@pytest.mark.parametrize("axis", [-(2**63), 2**63 - 1, 2, -3])
def test_axes_that_x_does_not_have_are_refused(axis: int) -> None:
    with pytest.raises(RuntimeError, match=r"axis: expected an axis in -2\.\.1, got"):
        OPS.fake_quantize(torch.randn(3, 4), torch.ones(3), None, -8, 7, axis, 0, False, False)


def test_sizes_beside_a_zero_may_be_any() -> None:
    x = torch.empty(0, 2**40, 2**22)
    y = OPS.fake_quantize(x, torch.empty(0), None, -8, 7, 0, 0, False, False)
    assert y.shape == x.shape
    assert OPS.quantize_per_channel(x, torch.empty(0), 0, -8, 7).shape == x.shape
    assert OPS.minmax_per_channel(x, 0)[0].shape == (2, 0)
    y = OPS.fake_quantize(x, torch.empty(0, 0), None, -8, 7, None, 16, False, False)
    assert y.shape == x.shape
