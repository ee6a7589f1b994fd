"""rounding.layer_problem: what is aimed at, and levels that weigh each input by its power."""

import pytest
import torch
from torch import nn

from octavo.numerics.scheme import Scheme
from octavo.rounding.layer_problem import LayerProblem
from octavo.rounding.methods.nearest import nearest
from octavo.rounding.patches import moments_of
from octavo.rounding.quadratic import Moments


def layer_and_inputs():
    torch.manual_seed(0)
    module = nn.Linear(32, 12).eval()
    return module, torch.randn(4000, 32) * torch.logspace(-1.5, 1.5, 32)


@torch.no_grad()
def test_weights_aimed_at_make_up_for_wrong_inputs():
    module, x = layer_and_inputs()
    wrong = 1.25 * x  # As if the layers before gave too much of everything.
    layer = LayerProblem.of(
        module, module.weight.detach(), Scheme(4), moments_of(module, [wrong], [module(x)])
    )
    loud = layer.problem.wanted[0, :, -8:]
    assert torch.allclose(loud, module.weight[:, -8:] / 1.25, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("grid", ["kmeans", "log"])
@torch.no_grad()
def test_levels_that_depend_on_weights_are_those_of_loud_inputs(grid):
    module, x = layer_and_inputs()
    weight, scheme = module.weight.detach(), Scheme(3, grid)
    layer = LayerProblem.of(module, weight, scheme, moments_of(module, [x], [module(x)]))
    aimed = layer.problem.wanted[0]
    power = x.square().mean(0)

    def cost(codes):
        return float(((codes.dequantize() - aimed).square() * power).sum())

    assert cost(layer.plain) < cost(nearest(aimed, None, scheme))


def test_nothing_to_learn_from():
    module, _ = layer_and_inputs()
    assert LayerProblem.of(module, module.weight.detach(), Scheme(4), Moments()) is None
