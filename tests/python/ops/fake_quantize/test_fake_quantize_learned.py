"""fake_quantize_learned: LSQ and LSQ+ gradients against float64 sums of the formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fake_quantize_reference import Case, each, expected, same_bits
from octavo import ops
from octavo.numerics.scheme import MIN_SCALE


def used(case: Case) -> Case:
    """The case with the parameters that are used: positive scales, integer zero points."""
    scale = case.scale.abs().clamp_min(torch.tensor(MIN_SCALE))
    zero = case.zero_point
    if zero is not None:
        zero = zero.round().clamp(case.qmin, case.qmax)
    return replace(case, scale=scale, zero_point=zero)


def finite(case: Case) -> Case:
    """Without the values that would make every sum NaN or infinite."""
    return replace(case, x=torch.where(case.x.isfinite(), case.x, 1.0))


def test_values_and_gradients_are_the_formula(isa: str) -> None:
    def check(case: Case, dtype: torch.dtype, relu: bool) -> None:
        case = finite(case)
        # Negative scales and fractional zero points occur in training.
        sign = torch.where(torch.rand(case.scale.shape) < 0.3, -1.0, 1.0)
        zero = case.zero_point
        if zero is not None:
            zero = (zero + torch.rand(zero.shape) * 0.8 - 0.4).requires_grad_()
        case = replace(case, scale=(case.scale * sign).requires_grad_(), zero_point=zero)
        want = expected(used(case), relu)
        x = case.x.clone().requires_grad_()
        dy = torch.randn(x.shape).to(dtype)
        y = ops.fake_quantize_learned(
            x, case.scale, zero, relu=relu, grad_scale=0.37, **case.options
        )  # type: ignore[arg-type]
        assert same_bits(y.detach(), want.y)
        parameters = [case.scale] if zero is None else [case.scale, zero]
        dx, dscale, *dzero = torch.autograd.grad(y, [x, *parameters], dy)

        wide = dy.double().numpy()
        passes = want.inside & (case.x.float().numpy() > 0) if relu else want.inside
        assert same_bits(dx, np.where(passes, wide, 0.0))
        terms = wide * np.where(want.inside, want.codes - want.scaled, want.codes)
        error = 1e-6 * 0.37 * case.gather(np.abs(terms)) + 1e-30
        sums = 0.37 * case.gather(terms) * sign.double().numpy()
        assert (np.abs(dscale.numpy() - sums) <= error).all()
        if dzero:
            outside = np.where(want.inside, 0.0, wide)
            step = used(case).scale.detach().double().numpy()
            sums = -0.37 * case.gather(outside) * step
            error = 1e-6 * 0.37 * case.gather(np.abs(outside)) * step + 1e-30
            assert (np.abs(dzero[0].numpy() - sums) <= error).all()

    each(check)


def test_scale_gradient_is_that_of_lsq_in_float64() -> None:
    """With v / s in float64 too: float32 products move t by at most 2^-23 of itself."""
    x = torch.randn(100_000)
    scale = torch.tensor([0.11], requires_grad=True)
    dy = torch.randn(100_000)
    y = ops.fake_quantize_learned(x, scale, qmin=-8, qmax=7)
    (dscale,) = torch.autograd.grad(y, scale, dy)
    t = x.double() / scale.detach().double()
    inside = (t.round() >= -8) & (t.round() <= 7)
    terms = dy.double() * torch.where(inside, t.round() - t, t.clamp(-8, 7))
    bound = (dy.double().abs() * t.abs().clamp_max(8)).sum() * 2**-22
    assert abs(float(dscale) - float(terms.sum())) <= float(bound)


def test_smooth_part_agrees_with_a_difference_quotient() -> None:
    """Outside the range y = qmax * s is smooth in s: derivative qmax."""
    x = torch.full((16,), 100.0)
    scale = torch.tensor([0.5], requires_grad=True)
    y = ops.fake_quantize_learned(x, scale, qmin=-8, qmax=7)
    (dscale,) = torch.autograd.grad(y.sum(), scale)
    assert float(dscale) == 16 * 7


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -1e-30, -3.0])
def test_tiny_and_negative_scales_are_used_by_magnitude(value: float) -> None:
    x = torch.tensor([1.0, -1.0, 0.25])
    scale = torch.tensor([value], requires_grad=True)
    y = ops.fake_quantize_learned(x, scale, qmin=-8, qmax=7)
    s = torch.tensor([max(abs(value), MIN_SCALE)])
    assert torch.equal(y, ops.fake_quantize(x, s, qmin=-8, qmax=7))
    (dscale,) = torch.autograd.grad(y, scale, torch.tensor([1.0, 0.0, 0.0]))
    positive = torch.tensor([float(s)], requires_grad=True)
    z = ops.fake_quantize_learned(x, positive, qmin=-8, qmax=7)
    (same,) = torch.autograd.grad(z, positive, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(dscale, -same if value < 0 else same)


def test_nan_reaches_values_and_gradients() -> None:
    x = torch.tensor([1.0, float("nan")], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    y = ops.fake_quantize_learned(x, scale, qmin=-8, qmax=7)
    assert y.isnan().tolist() == [False, True]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0]
    assert scale.grad is not None and scale.grad.isnan().all()


@pytest.mark.parametrize("name", ["scale", "zero_point"])
def test_a_parameter_that_is_nan_makes_every_value_nan(isa: str, name: str) -> None:
    x = torch.randn(40)
    bad = torch.tensor([float("nan")])
    scale, zero = (bad, torch.ones(1)) if name == "scale" else (torch.ones(1), bad)
    assert ops.fake_quantize_learned(x, scale, zero, qmin=0, qmax=7).isnan().all()


def test_agrees_with_torch_within_a_step() -> None:
    x, dy = torch.randn(2, 4000).unbind()
    x.requires_grad_()
    scale = torch.tensor([0.1], requires_grad=True)
    zero = torch.tensor([3.0], requires_grad=True)
    ours = ops.fake_quantize_learned(x, scale, zero, qmin=0, qmax=15)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, 0, 15, 1.0)
    assert (ours - theirs).abs().max() <= 0.1 + 1e-6
    for a, b in zip(
        torch.autograd.grad(ours, [x, scale, zero], dy),
        torch.autograd.grad(theirs, [x, scale, zero], dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


x34 = torch.ones(3, 4)
one = torch.ones(1)
BAD = [
    (lambda: ops.fake_quantize_learned(x34, one, qmin=0, qmax=1, grad_scale="1"), TypeError, "grad_scale: .*got '1'"),
    (lambda: ops.fake_quantize_learned(x34, one, qmin=0, qmax=1, grad_scale=-1.0), ValueError, "grad_scale: .*got -1.0"),
    (lambda: ops.fake_quantize_learned(x34, one, qmin=0, qmax=1, grad_scale=float("nan")), ValueError, "grad_scale: .*got nan"),
    (lambda: ops.fake_quantize_learned(x34.int(), one, qmin=0, qmax=1), TypeError, "learned: x: .*int32"),
    (lambda: ops.fake_quantize_learned(x34, one.half(), qmin=0, qmax=1), TypeError, "learned: scale: .*float16"),
    (lambda: ops.fake_quantize_learned(x34, one, torch.ones(2), qmin=0, qmax=1), ValueError, "learned: zero_point"),
    (lambda: ops.fake_quantize_learned(x34, one, qmin=1, qmax=2), ValueError, "learned: qmin: .*got 1"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]
