"""Layers while something of them is learned by gradients: their codes, or their scales."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from octavo.interrupts import check
from octavo.numerics.codes import Codes
from octavo.numerics.grids import spread
from octavo.rounding.methods.nearest import safe_scale
from octavo.rounding.soft import Soft, penalty

__all__ = ["Learnable", "LearnableCodes", "LearnableScales", "descend"]


class Learnable:
    """A layer while something of it is learned; its bias always is.

    Attributes:
        steps: number of steps of learning.
        way: half of the steps times the rate: how far a variable can go.
    """

    steps: int
    way: float

    def __init__(self, weight: Tensor, codes: Codes) -> None:
        self.codes = codes
        bias = (
            torch.zeros(len(codes.codes), dtype=torch.float32)
            if codes.bias is None
            else codes.bias.clone()
        )
        self.bias = bias.requires_grad_()

    @property
    def learned(self) -> Tensor:
        """What is learned beside the bias."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The weight meanwhile."""
        raise NotImplementedError

    def unsure(self, done: float) -> Tensor | None:
        """A penalty when ``done`` (0..1) of the steps are."""
        return None

    def hard(self) -> Codes:
        """What has been learned."""
        return dataclasses.replace(self.codes, bias=self.bias.detach().clone())


class LearnableCodes(Learnable):
    """Codes are learned: weights with levels between."""

    steps, way = 600, 30.0  # From end to end are 5.

    def __init__(self, weight: Tensor, codes: Codes) -> None:
        super().__init__(weight, codes)
        rows, self._scale = weight.float().reshape(len(weight), -1), codes.spread()
        start = codes.codes.reshape(rows.shape).float()
        self._soft = Soft.beside(
            start, rows / self._scale, codes.scheme, codes.levels, codes.zero_point
        )

    @property
    def learned(self) -> Tensor:
        """Its variables of AdaRound."""
        return self._soft.v

    def weight(self) -> Tensor:
        """With levels between."""
        return (self._soft.levels() * self._scale).view(self.codes.codes.shape)

    def unsure(self, done: float) -> Tensor | None:
        """AdaRound's."""
        return penalty(self._soft.v, done)

    def hard(self) -> Codes:
        """With the codes chosen."""
        levels = self._soft.hard().to(torch.int8).view(self.codes.codes.shape)
        return dataclasses.replace(super().hard(), codes=levels)


class LearnableScales(Learnable):
    """Codes stay, scales are learned, by their logarithms."""

    steps, way = 300, 0.05

    def __init__(self, weight: Tensor, codes: Codes) -> None:
        super().__init__(weight, codes)
        scale = codes.scale[:1] if codes.scheme.per_tensor else codes.scale
        self._growth = torch.zeros_like(scale).requires_grad_()
        self._levels = codes.codes.reshape(len(weight), -1).float()

    @property
    def learned(self) -> Tensor:
        """The logarithms of what its scales grow by."""
        return self._growth

    def _scale(self) -> Tensor:
        return self.codes.scale * self._growth.exp()

    def weight(self) -> Tensor:
        """With the scales meanwhile."""
        scale = spread(self._scale(), self.codes.scheme.group_size, self._levels.shape[1])
        return (self._levels * scale).view(self.codes.codes.shape)

    def hard(self) -> Codes:
        """With the scales learned."""
        scale = safe_scale(self._scale().detach(), self.codes.scheme)
        return dataclasses.replace(super().hard(), scale=scale)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimizer; parameters that are not its own get no gradients."""
    check()
    variables = [v for group in optimizer.param_groups for v in group["params"]]
    gradients = torch.autograd.grad(loss, variables, materialize_grads=True)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.grad = gradient
    optimizer.step()
