"""Networks of torchvision with stochastic depth, trained in few bits: captured as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.training.trainee import training_of


def trainee_of(torchvision: Any, name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None)
    data = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        for _ in range(2):
            model.train()(data)
    trainee = octavo.quantize(model.eval(), 8, data=[data], qat=True, progress=False)
    return trainee.train(), data


def test_efficientnet(torchvision: object) -> None:
    """One region, every layer in it, and each site within one step of what was trained."""
    trainee, data = trainee_of(torchvision, "efficientnet_b0")
    training = training_of(trainee)
    assert training is not None
    (flow,) = training.plan.flows
    assert len(flow.regions) == 1 and all(site.region for site in training.plan.sites)
    with torch.no_grad():
        first, second = trainee(data), trainee(data)  # Ranges and statistics move; rows drop.
    assert first.shape == second.shape == (4, 1000) and not torch.equal(first, second)
    frozen = octavo.freeze(trainee, progress=False)
    found = octavo.verify(trainee, frozen, data[:2])
    assert found.holds, str(found)


@pytest.mark.slow
def test_convnext(torchvision: object) -> None:
    """LayerNorm stays float on purpose, so there are many regions; one forward all the same."""
    trainee, data = trainee_of(torchvision, "convnext_tiny")
    training = training_of(trainee)
    assert training is not None and [flow.flow.path for flow in training.plan.flows] == [""]
    trainee(data).sum().backward()
    found = octavo.verify(trainee, octavo.freeze(trainee, progress=False), data[:2])
    assert found.holds, str(found)
