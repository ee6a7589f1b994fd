"""rounding.adaround: up or down by the output's error, for every grid, near the best there is."""

import itertools

import pytest
import torch
from torch import nn

from octavo.grids import GRIDS, neighbours
from octavo.rounding.adaround import learned
from octavo.rounding.layer_problem import LayerProblem
from octavo.rounding.nearest import nearest
from octavo.rounding.patches import moments_of
from octavo.rounding.quadratic import Moments
from octavo.rounding.soft import Soft, inverse, penalty, share
from octavo.scheme import Scheme


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
    codes = learned(module, module.weight.detach(), scheme, moments)
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
    codes = learned(module, module.weight.detach(), scheme, moments)
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
    codes = learned(module, module.weight.detach(), Scheme(4, group_size=16), moments)
    assert codes.scale.shape == (6, 3)
    assert torch.equal(codes.scale.bfloat16().float(), codes.scale)
    unreached = learned(module, module.weight.detach(), Scheme(4), Moments())
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
        ends = penalty(torch.tensor([-9.0, 9.0]), 0.6)
        middle = penalty(inverse(torch.tensor([0.5, 0.5])), 0.6)
    assert float(ends) == 0.0 and float(middle) == 2.0
