"""GPTQ for linear layers and convolutions, on the outputs of the rounded layers before.

Frantar et al., "GPTQ: Accurate Post-Training Quantization" (2022). Three things are added: the
weights aimed at make up for the errors of earlier layers (least squares on the float outputs),
descent over single codes follows the pass, and scales are fitted to the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octavo.rounding.codes import Codes
from octavo.rounding.lockstep import Lockstep, Pause
from octavo.rounding.nearest import nearest
from octavo.rounding.patches import moments_of
from octavo.rounding.quadratic import Moments, Problem
from octavo.scheme import Scheme

__all__ = ["gptq", "solve"]

_PULL = 0.05  # Of the mean diagonal: holds the least-squares weights to the float ones.
_RATIOS = (0.85, 0.925, 1.0, 1.075)  # Scales tried, of the one that suits plain rounding.
_COSTLY = 1 << 17  # Weights of a layer beyond which one scale is tried.


def gptq(runs: Lockstep, pause: Pause) -> dict[str, Codes]:
    """Codes of the layer of a pause."""
    (name,) = pause.layers
    scheme = runs.sites[name].scheme
    assert scheme is not None
    module = runs.model.get_submodule(name)
    moments = moments_of(module, pause.inputs, pause.targets)
    return {name: solve(module, runs.weights[name], scheme, moments)}


def solve(module: nn.Module, weight: Tensor, scheme: Scheme, moments: Moments) -> Codes:
    """The codes that second moments lead to."""
    weight = weight.float()
    plain = nearest(weight, module._parameters.get("bias"), scheme)
    if weight.numel() == 0 or moments.count == 0:
        return plain
    groups = int(getattr(module, "groups", 1))
    grouped = weight.reshape(groups, weight.shape[0] // groups, -1)
    xx, xy = moments.centered()
    wanted = _least_squares(grouped.double(), xx, xy)
    problem = Problem.of(wanted, xx, scheme)
    start = plain.scale.view(groups, -1, 1)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for ratio in _RATIOS if weight.numel() <= _COSTLY else (1.0,):
        codes, scale = problem.solve(start * ratio, fit=True)
        error = problem.errors(codes * scale)
        if best is None:
            best = codes, scale, error
        else:
            better = error < best[2]
            best = (
                torch.where(better[:, :, None], codes, best[0]),
                torch.where(better[:, :, None], scale, best[1]),
                torch.minimum(error, best[2]),
            )
    assert best is not None
    codes, scale = best[0].to(torch.int8).view(weight.shape), best[1].reshape(-1)
    mean_x, mean_y = moments.means()
    real = (best[0] * best[1]).double()
    bias = mean_y - (real @ mean_x[:, :, None])[:, :, 0]
    return Codes(codes, scale.contiguous(), bias.reshape(-1).float(), scheme)


def _least_squares(weight: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """float32 [G, R, K]: W + (Y X^T - W X X^T) (X X^T + pull)^-1."""
    h = xx.clone()
    diagonal = h.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal += torch.where(mean > 0, _PULL * mean, torch.ones_like(mean))
    residual = xy - xx @ weight.mT
    solved: Tensor = torch.linalg.solve(h, residual)
    return (weight.mT + solved).mT.float()
