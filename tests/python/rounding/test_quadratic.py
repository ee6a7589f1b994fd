"""rounding.quadratic: errors fall from rounding to the pass to descent; small cases are optimal."""

import itertools

import pytest
import torch

from octavo.numerics.scheme import Scheme
from octavo.rounding.quadratic import Moments, Problem


def problem(groups=2, rows=5, columns=40, bits=3, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(groups, 400, columns) @ torch.randn(groups, columns, columns)
    return Problem.of(torch.randn(groups, rows, columns), x.mT @ x / 400, Scheme(bits))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_each_stage_lowers_the_error(bits, groups):
    p = problem(groups, bits=bits)
    scale = p.wanted.abs().amax(2, keepdim=True) / (2 ** (bits - 1))
    plain = p.errors(p.snap(p.wanted / scale) * scale).sum()
    passed = p.pass_errors_on(scale)
    after = p.errors(passed * scale).sum()
    descended = p.descend(passed, scale)
    at_last = p.errors(descended * scale)
    assert float(after) < 0.8 * float(plain)
    assert bool((at_last <= p.errors(passed * scale) * 1.0001).all())
    for codes in (passed, descended):
        assert torch.equal(codes, codes.round())
        assert -(2 ** (bits - 1)) <= int(codes.min()) and int(codes.max()) < 2 ** (bits - 1)


def test_descent_ends_where_no_single_code_can_be_improved():
    p = problem(1, 3, 6, 2)
    scale = torch.full((1, 3, 1), 0.7)
    codes = p.pass_errors_on(scale)
    for _ in range(20):
        codes = p.descend(codes, scale)
    lowest = p.errors(codes * scale)
    for column, level in itertools.product(range(6), range(-2, 2)):
        other = codes.clone()
        other[:, :, column] = level
        assert bool((p.errors(other * scale) >= lowest - 1e-4 * lowest.abs()).all())


def test_fitted_scale_is_the_best_one():
    p = problem(1)
    scale = torch.full((1, 5, 1), 0.5)
    codes = p.pass_errors_on(scale)
    fitted = p.fitted_scale(codes, scale)
    best = p.errors(codes * fitted)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert bool((p.errors(codes * fitted * factor) >= best).all())


def test_blocks_of_columns_change_nothing(monkeypatch):
    p = problem(1, 4, 50)
    scale = torch.full((1, 4, 1), 0.5)
    whole = p.pass_errors_on(scale), p.descend(torch.zeros(1, 4, 50), scale)
    monkeypatch.setattr("octavo.rounding.quadratic._BLOCK", 7)
    parts = p.pass_errors_on(scale), p.descend(torch.zeros(1, 4, 50), scale)
    # Sums in another order may move a value across a rounding border, now and then.
    assert all(float((a != b).float().mean()) < 0.02 for a, b in zip(whole, parts, strict=True))


def test_inputs_that_are_always_zero_round_to_nearest():
    p = Problem.of(torch.tensor([[[0.6, -1.3]]]), torch.zeros(1, 2, 2), Scheme(4))
    codes = p.pass_errors_on(torch.ones(1, 1, 1))
    assert codes.flatten().tolist() == [1.0, -1.0]


def test_moments_do_not_depend_on_batches():
    torch.manual_seed(0)
    x, y = torch.randn(2, 60, 5) + 1, torch.randn(2, 60, 3)
    one, two = Moments(), Moments()
    one.add(x, y)
    two.add(x[:, :20], y[:, :20])
    two.add(x[:, 20:], y[:, 20:])
    for a, b in zip(one.centered(), two.centered(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    centered = (x - x.mean(1, keepdim=True)).double()
    assert torch.allclose(one.centered()[0], centered.mT @ centered / 60, atol=1e-5)


def test_moments_of_values_that_hardly_differ():
    """Their squares in float32 lose the differences: second moments were not positive definite."""
    torch.manual_seed(0)
    x = 30 + 1e-3 * torch.randn(1, 4096, 6)
    moments = Moments()
    for part in x.split(512, 1):
        moments.add(part, 2 * part)
    centered = x.double() - x.double().mean(1, keepdim=True)
    expected = centered.mT @ centered / 4096
    xx, xy = moments.centered()
    assert torch.allclose(xx, expected, rtol=1e-3, atol=1e-9)
    assert torch.allclose(xy, 2 * expected, rtol=1e-3, atol=1e-9)
    mean_x, mean_y = moments.means()
    assert torch.allclose(mean_x, x.double().mean(1)) and torch.allclose(mean_y, 2 * mean_x)
    Problem.of(x[:, :2], xx, Scheme(8)).pass_errors_on(torch.full((1, 2, 1), 0.3))


@pytest.mark.parametrize("seed", range(6))
def test_inputs_that_hardly_differ_leave_a_problem_that_can_be_solved(seed):
    """One image twice: float32 products are off by more than a hundredth of the variance."""
    torch.manual_seed(seed)
    x = torch.rand(1, 1, 300) * 5 + 1
    moments = Moments()
    moments.add(x, torch.zeros(1, 1, 4))
    moments.add(x, torch.zeros(1, 1, 4))
    problem = Problem.of(torch.randn(1, 4, 300), moments.centered()[0], Scheme(8))
    codes = problem.pass_errors_on(torch.full((1, 4, 1), 0.02))
    assert bool(codes.isfinite().all()) and codes.unique().numel() > 50
