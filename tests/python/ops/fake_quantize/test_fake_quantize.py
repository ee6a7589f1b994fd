"""fake_quantize: values and gradients against the contract's formula in float64, layouts, messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fake_quantize_reference import Case, each, expected, layouts, same_bits
from octavo import ops


def run(case: Case, relu: bool) -> Tensor:
    return ops.fake_quantize(case.x, case.scale, case.zero_point, relu=relu, **case.options)  # type: ignore[arg-type]


def test_values_are_the_formula(isa: str) -> None:
    def check(case: Case, dtype: torch.dtype, relu: bool) -> None:
        y = run(case, relu)
        assert y.dtype is dtype
        assert same_bits(y, expected(case, relu).y)

    each(check)


def test_gradient_passes_where_the_code_lies_inside(isa: str) -> None:
    def check(case: Case, dtype: torch.dtype, relu: bool) -> None:
        want = expected(case, relu)
        x = case.x.clone().requires_grad_()
        dy = torch.randn(x.shape).to(dtype)
        y = ops.fake_quantize(x, case.scale, case.zero_point, relu=relu, **case.options)  # type: ignore[arg-type]
        assert torch.equal(y.isnan(), case.x.isnan()) and same_bits(y.detach(), want.y)
        (dx,) = torch.autograd.grad(y, x, dy)
        passes = want.inside & (case.x.float().numpy() > 0) if relu else want.inside
        assert dx.dtype is dtype
        assert same_bits(dx, np.where(passes, dy.double().numpy(), 0.0))

    each(check)


def test_the_codes_are_those_of_quantize(isa: str) -> None:
    x = torch.randn(5000)
    for scale, zero in ((0.031, 128), (0.5, 3), (1e-3, 255)):
        y = ops.fake_quantize(
            x, torch.tensor([scale]), torch.tensor([float(zero)]), qmin=0, qmax=255
        )
        assert torch.equal(y, ops.dequantize(ops.quantize(x, scale, zero), scale, zero))


def test_any_layout_gives_the_same_values(isa: str) -> None:
    x = torch.randn(6, 5, 4, 7)
    dy = torch.randn(x.shape)
    for options in ({}, {"axis": 0}, {"axis": 1}, {"axis": 3}, {"group_size": 32}):
        shape = (1,) if not options else (x.shape[options.get("axis", 0)],)
        shape = (6, 5) if "group_size" in options else shape
        scale = torch.rand(shape) * 0.1 + 0.05
        results = []
        for _, values in layouts(x):
            same = values.detach().requires_grad_()
            y = ops.fake_quantize(same, scale, qmin=-8, qmax=7, **options)  # type: ignore[arg-type]
            (dx,) = torch.autograd.grad(y, same, dy)
            for _, other_dy in layouts(dy):
                z = ops.fake_quantize(same, scale, qmin=-8, qmax=7, **options)  # type: ignore[arg-type]
                assert torch.equal(torch.autograd.grad(z, same, other_dy)[0], dx)
            results.append((y.detach(), dx))
        for y, dx in results:
            assert torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1])


@pytest.mark.parametrize("columns", [64, 80])
def test_large_results_are_written_past_the_caches(columns: int, isa: str) -> None:
    """17 MiB or more, channels innermost; with a mask and without, equal to the same rows in parts."""
    if isa == "scalar":
        pytest.skip("scalar writes all results alike")
    x = torch.randn(70_000, columns)
    scale = torch.rand(columns) * 0.1 + 0.05
    options = {"qmin": -8, "qmax": 7, "axis": 1}
    parts = [ops.fake_quantize(part, scale, **options) for part in x.split(7_000)]
    assert torch.equal(ops.fake_quantize(x, scale, **options), torch.cat(parts))
    leaf = x.requires_grad_()
    y = ops.fake_quantize(leaf, scale, relu=True, **options)
    assert torch.equal(y.detach(), torch.cat(parts).clamp_min(0))
    (dx,) = torch.autograd.grad(y, leaf, torch.ones(()).expand(y.shape))
    assert torch.equal(dx != 0, (leaf > 0) & (leaf.detach() * (1 / scale) <= 7.5 - 2**-20))


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = ops.fake_quantize(x, torch.tensor([0.1]), qmin=0, qmax=15)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)


def test_expanded_gradient() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    ops.fake_quantize(x, torch.tensor([0.1]), qmin=-128, qmax=127).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(4, 6))


def test_float64_is_computed_in_float32() -> None:
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = ops.fake_quantize(x, torch.tensor([0.1]), qmin=-8, qmax=7)
    assert y.dtype is torch.float64
    assert torch.equal(
        y, ops.fake_quantize(x.float(), torch.tensor([0.1]), qmin=-8, qmax=7).double()
    )
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype is torch.float64


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 4), (4, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    y = ops.fake_quantize(x, torch.ones(1), qmin=0, qmax=1)
    assert y.shape == shape
    y.sum().backward()
    axis = len(shape) - 1
    assert ops.fake_quantize(x, torch.ones(shape[axis]), qmin=0, qmax=1, axis=axis).shape == shape
    if len(shape) == 2:
        groups = torch.ones(shape[0], -(-shape[1] // 16))
        assert ops.fake_quantize(x, groups, qmin=0, qmax=1, group_size=16).shape == shape


def test_input_may_change_before_backward_only_if_it_is_not_saved() -> None:
    x = torch.randn(20, requires_grad=True)
    leaf = x * 1.0
    y = ops.fake_quantize(leaf, torch.tensor([0.1]), qmin=-8, qmax=7)
    expected_gradient = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected_gradient)


def test_double_backward_is_refused() -> None:
    x = torch.randn(20, requires_grad=True)
    y = ops.fake_quantize(x, torch.tensor([0.1]), qmin=-8, qmax=7)
    (dx,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


one = torch.ones(1)
x34 = torch.ones(3, 4)
BAD = [
    (lambda: ops.fake_quantize([1.0], one, qmin=0, qmax=1), TypeError, "x: .*torch.as_tensor"),
    (lambda: ops.fake_quantize(x34.long(), one, qmin=0, qmax=1), TypeError, r"x: .*int64.*\.float\(\)"),
    (lambda: ops.fake_quantize(x34.to_sparse(), one, qmin=0, qmax=1), TypeError, "x: .*sparse"),
    (lambda: ops.fake_quantize(x34, 0.1, qmin=0, qmax=1), TypeError, "scale: .*got float"),
    (lambda: ops.fake_quantize(x34, one.double(), qmin=0, qmax=1), TypeError, "scale: .*float64"),
    (lambda: ops.fake_quantize(x34, torch.zeros(1), qmin=0, qmax=1), ValueError, r"scale: .*got 0.0 at index \[0\]"),
    (lambda: ops.fake_quantize(x34, -one, qmin=0, qmax=1), ValueError, "scale: .*got -1.0"),
    (lambda: ops.fake_quantize(x34, one * float("nan"), qmin=0, qmax=1), ValueError, "scale: .*got nan"),
    (lambda: ops.fake_quantize(x34, one * float("inf"), qmin=0, qmax=1), ValueError, "scale: .*got inf"),
    (lambda: ops.fake_quantize(x34, one * 1e-45, qmin=0, qmax=1), ValueError, "scale: .*e-45"),
    (lambda: ops.fake_quantize(x34, torch.ones(3), qmin=0, qmax=1), ValueError, r"scale: .*shape \[3\].*axis"),
    (lambda: ops.fake_quantize(x34, torch.ones(4), qmin=0, qmax=1, axis=0), ValueError, r"scale: .*\[3\], got \[4\]"),
    (lambda: ops.fake_quantize(x34, torch.tensor([1.0, 0.0, 1.0]), qmin=0, qmax=1, axis=0), ValueError, r"index \[1\]"),
    (lambda: ops.fake_quantize(x34, torch.ones(3), qmin=0, qmax=1, axis=2), ValueError, "axis: .*got 2"),
    (lambda: ops.fake_quantize(x34, torch.ones(3), qmin=0, qmax=1, axis=-5), ValueError, "axis: .*got -5"),
    (lambda: ops.fake_quantize(x34, one, qmin=0, qmax=1, group_size=24), ValueError, "group_size: .*got 24"),
    (lambda: ops.fake_quantize(x34, one, qmin=0, qmax=1, group_size=-1), ValueError, "group_size: .*got -1"),
    (lambda: ops.fake_quantize(x34, one, qmin=0, qmax=1, group_size=16), ValueError, r"scale: .*\[3, 1\], got \[1\]"),
    (lambda: ops.fake_quantize(x34, torch.ones(3, 1), qmin=0, qmax=1, axis=1, group_size=16), ValueError, "axis: .*got 1"),
    (lambda: ops.fake_quantize(x34, one, qmin=0, qmax=256), ValueError, "qmax: .*got 256"),
    (lambda: ops.fake_quantize(x34, one, qmin=-129, qmax=7), ValueError, "qmin: .*got -129"),
    (lambda: ops.fake_quantize(x34, one, qmin=3, qmax=3), ValueError, "qmin: .*got 3"),
    (lambda: ops.fake_quantize(x34, one, qmin=3, qmax=5), ValueError, "qmin: .*got 3"),
    (lambda: ops.fake_quantize(x34, one, qmin=0, qmax=1.5), TypeError, "qmax: .*got 1.5"),
    (lambda: ops.fake_quantize(x34, one, one * 300, qmin=0, qmax=255), ValueError, r"zero_point: .*0\.\.255, got 300"),
    (lambda: ops.fake_quantize(x34, one, one * -1, qmin=0, qmax=255), ValueError, "zero_point: .*got -1"),
    (lambda: ops.fake_quantize(x34, one, one * 1.5, qmin=0, qmax=255), ValueError, "zero_point: .*got 1.5"),
    (lambda: ops.fake_quantize(x34, one, torch.ones(3), qmin=0, qmax=255), ValueError, "zero_point: .*one number"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]
