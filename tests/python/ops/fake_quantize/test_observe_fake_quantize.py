"""observe_fake_quantize: the moving average by hand, the steps that follow, bad values, messages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fake_quantize_reference import DTYPES
from octavo import ops
from octavo.numerics.scheme import MIN_SCALE


def fresh(*shape: int) -> Tensor:
    state = torch.empty(2, *shape) if shape else torch.empty(2)
    state[0], state[1] = math.inf, -math.inf
    return state


def steps(low: float, high: float, qmin: int, qmax: int) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor(max((high - low) / (qmax - qmin), MIN_SCALE)))
    return scale, min(max(round(-low / scale) + qmin, qmin), qmax)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_moving_average_and_values(
    isa: str, axis: int | None, relu: bool, dtype: torch.dtype
) -> None:
    batches = [(torch.randn(3, 5, 17) * (i + 1)).to(dtype) for i in range(4)]
    channels = () if axis is None else (batches[0].shape[axis],)
    state, by_hand = fresh(*channels), None
    for x in batches:
        before = state.clone()
        result = ops.observe_fake_quantize(
            x, state, qmin=0, qmax=15, momentum=0.25, axis=axis, relu=relu
        )
        seen = x.float().relu() if relu else x.float()
        others = [d for d in range(3) if d != axis]
        now = torch.stack([seen.amin(others), seen.amax(others)])
        by_hand = now if by_hand is None else by_hand + 0.25 * (now - by_hand)
        torch.testing.assert_close(state, by_hand, rtol=1e-6, atol=0)
        assert not torch.equal(state, before)
        for c in range(max(1, math.prod(channels))):
            low, high = (float(v) for v in state.reshape(2, -1)[:, c])
            scale, zero = steps(low, high, 0, 15)
            assert abs(float(result.scale[c]) / scale - 1) < 1e-6
            assert int(result.zero_point[c]) == zero
        assert torch.equal(
            result.y,
            ops.fake_quantize(
                x, result.scale, result.zero_point, qmin=0, qmax=15, axis=axis, relu=relu
            ),
        )
        assert int(result.non_finite) == 0 and result.non_finite.dtype is torch.int64


def test_without_update_the_state_is_read_only(isa: str) -> None:
    state = torch.tensor([-1.0, 3.0])
    x = torch.randn(100) * 10
    result = ops.observe_fake_quantize(x, state, qmin=0, qmax=255, momentum=0.5, update=False)
    assert state.tolist() == [-1.0, 3.0]
    assert float(result.y.max()) <= 3.0 + 1e-6


def test_values_that_are_not_finite_never_enter(isa: str) -> None:
    state = fresh()
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")])
    first = ops.observe_fake_quantize(bad, state, qmin=0, qmax=3, momentum=0.5)
    assert state.tolist() == [math.inf, -math.inf] and int(first.non_finite) == 3
    assert float(first.scale) == MIN_SCALE and first.y[0].isnan()
    mixed = torch.cat([bad, torch.tensor([-1.0, 2.0])])
    second = ops.observe_fake_quantize(mixed, state, qmin=0, qmax=3, momentum=0.5)
    assert state.tolist() == [-1.0, 2.0] and int(second.non_finite) == 3
    assert second.y.isnan().tolist() == [True, False, False, False, False]
    ops.observe_fake_quantize(bad, state, qmin=0, qmax=3, momentum=0.5)
    assert state.tolist() == [-1.0, 2.0]
    per_channel = fresh(2)
    x = torch.tensor([[float("nan"), float("inf")], [1.0, 2.0]])
    ops.observe_fake_quantize(x, per_channel, qmin=0, qmax=3, momentum=0.5, axis=0)
    assert per_channel.tolist() == [[math.inf, 1.0], [-math.inf, 2.0]]


def test_empty_batch_leaves_the_state_alone() -> None:
    state = fresh()
    result = ops.observe_fake_quantize(torch.empty(0, 3), state, qmin=0, qmax=3, momentum=0.5)
    assert result.y.shape == (0, 3) and state.tolist() == [math.inf, -math.inf]


def test_symmetric(isa: str) -> None:
    state = fresh()
    result = ops.observe_fake_quantize(
        torch.tensor([-3.0, 1.0]), state, qmin=-8, qmax=7, momentum=0.5, symmetric=True
    )
    assert torch.equal(result.scale, torch.tensor([3.0 / 7])) and float(result.zero_point) == 0


def test_gradient_is_that_of_fake_quantize(isa: str) -> None:
    state = torch.tensor([-1.0, 1.0])
    x = torch.randn(200, requires_grad=True)
    result = ops.observe_fake_quantize(x, state, qmin=0, qmax=15, momentum=0.01)
    dy = torch.randn(200)
    (dx,) = torch.autograd.grad(result.y, x, dy)
    same = ops.fake_quantize(x, result.scale, result.zero_point, qmin=0, qmax=15)
    assert torch.equal(dx, torch.autograd.grad(same, x, dy)[0])
    assert not result.scale.requires_grad and not result.zero_point.requires_grad


def test_mse_range_has_the_smallest_error_of_the_ratios(isa: str) -> None:
    x = torch.randn(4000)
    x[0] = 25.0
    state = fresh()
    result = ops.observe_fake_quantize(x, state, qmin=0, qmax=7, momentum=1.0, rule="mse")
    error = (result.y - x).double().square().sum()
    best = math.inf
    for ratio in (i / 20 for i in range(20, 3, -1)):
        scale, zero = steps(float(x.min()) * ratio, 25.0 * ratio, 0, 7)
        y = ops.fake_quantize(x, torch.tensor([scale]), torch.tensor([float(zero)]), qmin=0, qmax=7)
        best = min(best, float((y - x).double().square().sum()))
    assert float(error) <= best * (1 + 1e-6)
    assert float(state[1]) < 25.0


x34, pair = torch.ones(3, 4), torch.zeros(2)
BAD = [
    (lambda: ops.observe_fake_quantize(x34, [0, 1], qmin=0, qmax=3, momentum=0.1), TypeError, r"state: .*got \[0, 1\]"),
    (lambda: ops.observe_fake_quantize(x34, pair.double(), qmin=0, qmax=3, momentum=0.1), TypeError, "state: .*float64"),
    (lambda: ops.observe_fake_quantize(x34, torch.zeros(2, 4), qmin=0, qmax=3, momentum=0.1, axis=0), ValueError, r"\[2, 3\].*\[2, 4\]"),
    (lambda: ops.observe_fake_quantize(x34, torch.zeros(2, requires_grad=True), qmin=0, qmax=3, momentum=0.1), ValueError, "requires_grad"),
    (lambda: ops.observe_fake_quantize(x34, pair, qmin=0, qmax=3, momentum=1.5), ValueError, "momentum: .*got 1.5"),
    (lambda: ops.observe_fake_quantize(x34, pair, qmin=0, qmax=3, momentum=0.1, rule="best"), ValueError, "rule: .*'best'"),
    (lambda: ops.observe_fake_quantize(x34, torch.zeros(2, 3), qmin=0, qmax=3, momentum=0.1, rule="mse", axis=0), ValueError, "rule: .*'mse'"),
    (lambda: ops.observe_fake_quantize(x34, pair, qmin=-3, qmax=0, momentum=0.1, symmetric=True), ValueError, "qmax: .*got 0"),
    (lambda: ops.observe_fake_quantize(x34.long(), pair, qmin=0, qmax=3, momentum=0.1), TypeError, "x: .*int64"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]
