"""rounding.adaround: up or down by the output's error, for every grid, near the best there is."""

import itertools

import pytest
import torch
from torch import nn

from octavo.numerics.grids import GRIDS, neighbours
from octavo.numerics.scheme import Scheme
from octavo.rounding.layer_problem import LayerProblem, solve
from octavo.rounding.methods.adaround import solution
from octavo.rounding.methods.gptq import solution as gptq_solution
from octavo.rounding.methods.nearest import nearest
from octavo.rounding.patches import moments_of
from octavo.rounding.quadratic import Moments
from octavo.rounding.soft import Soft, inverse, penalty, share


def layer_and_moments(module, shape, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(400, *shape)
    x = (x.movedim(1, -1) @ torch.randn(shape[0], shape[0])).movedim(-1, 1)
    x = x.cumsum(-1)  # Neighbours in an image are alike.
    with torch.no_grad():
        return module, moments_of(module, [x], [module(x)])


MODULES = {
    "linear": (lambda: nn.Linear(24, 10), (24,)),
    "convolution": (lambda: nn.Conv2d(6, 8, 3, padding=1), (6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (6, 5, 5)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_are_nearer_than_with_plain_rounding(name, grid):
    make, shape = MODULES[name]
    torch.manual_seed(1)
    module, moments = layer_and_moments(make().eval(), shape)
    scheme = Scheme(3, grid)
    codes = solve(module, module.weight.detach(), scheme, moments, solution)
    layer = LayerProblem.of(module, module.weight.detach(), scheme, moments)
    shape = layer.problem.wanted.shape
    errors = layer.problem.errors(codes.dequantize().reshape(shape))
    plain = layer.problem.errors(layer.plain.dequantize().reshape(shape))
    assert float(errors.sum()) < 0.95 * float(plain.sum())
    assert codes.codes.dtype == torch.int8 and not codes.bias.requires_grad
    if codes.levels is None:
        assert int(codes.codes.min()) >= -4 and int(codes.codes.max()) <= 3
    else:
        assert set(codes.codes.unique().tolist()) <= set(codes.levels.unique().tolist())


def test_a_small_layer_is_rounded_nearly_as_well_as_can_be():
    torch.manual_seed(5)
    module, moments = layer_and_moments(nn.Linear(8, 6).eval(), (8,))
    scheme = Scheme(3)
    codes = solve(module, module.weight.detach(), scheme, moments, solution)
    problem = LayerProblem.of(module, module.weight.detach(), scheme, moments).problem
    scale = codes.scale.view(1, -1, 1)
    got = problem.errors(codes.codes.view(1, 6, 8) * scale)
    low, high = (t.view(1, 6, 8) for t in neighbours((problem.wanted / scale)[0], scheme))
    choices = [
        problem.errors(torch.where(torch.tensor(up), high, low) * scale)
        for up in itertools.product((False, True), repeat=8)
    ]
    best = torch.stack(choices).amin(0)
    plain = problem.errors(problem.snap(problem.wanted / scale) * scale)
    assert bool((got >= best * 0.9999).all())
    assert float((got - best).sum()) < 0.25 * float((plain - best).sum())


def test_groups_and_layers_without_inputs():
    module, moments = layer_and_moments(nn.Linear(40, 6).eval(), (40,))
    codes = solve(module, module.weight.detach(), Scheme(4, group_size=16), moments, solution)
    assert codes.scale.shape == (6, 3)
    assert torch.equal(codes.scale.bfloat16().float(), codes.scale)
    unreached = solve(module, module.weight.detach(), Scheme(4), Moments(), solution)
    plain = nearest(module.weight.detach(), module.bias, Scheme(4))
    assert torch.equal(unreached.codes, plain.codes) and torch.equal(unreached.bias, plain.bias)


def test_variables():
    h = torch.tensor([0.02, 0.3, 0.5, 0.98])
    assert torch.allclose(share(inverse(h)), h, atol=1e-6)
    soft = Soft(torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 3.0]), torch.tensor([0.25, 0.75]))
    assert torch.allclose(soft.levels().detach(), torch.tensor([-0.75, 2.25]))
    assert soft.hard().tolist() == [-1.0, 3.0]
    assert penalty(soft.v, 0.1) is None  # Free of it in the first fifth of the steps.
    with torch.no_grad():
        ends = penalty(torch.tensor([-9.0, 9.0]), 1.0)
        middle = [float(penalty(inverse(torch.tensor([0.5, 0.5])), done)) for done in (0.6, 1.0)]
    assert float(ends) == 0.0 and middle == pytest.approx([2 * 1000**0.5, 2000.0])


def test_rows_are_no_worse_than_those_of_gptq_and_most_are_better():
    torch.manual_seed(2)
    module, moments = layer_and_moments(nn.Conv2d(32, 24, 3, padding=1).eval(), (32, 6, 6))
    weight, scheme = module.weight.detach(), Scheme(4)
    problem = LayerProblem.of(module, weight, scheme, moments).problem
    got, start = (
        problem.errors(solve(module, weight, scheme, moments, by).dequantize().view(1, 24, -1))
        for by in (solution, gptq_solution)
    )
    assert bool((got <= start).all())
    assert float((got < start).float().mean()) > 0.5
    assert float(got.sum()) < 0.97 * float(start.sum())


def test_variables_come_to_their_ends(monkeypatch):
    ended = []
    hard = Soft.hard
    monkeypatch.setattr(Soft, "hard", lambda soft: ended.append(share(soft.v)) or hard(soft))
    module, moments = layer_and_moments(nn.Linear(64, 16).eval(), (64,))
    solve(module, module.weight.detach(), Scheme(3), moments, solution)
    (h,) = ended
    assert float(((h > 0.01) & (h < 0.99)).float().mean()) < 0.01
