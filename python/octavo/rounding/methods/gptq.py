"""GPTQ for linear layers and convolutions, on the outputs of the rounded layers before.

Frantar et al., "GPTQ: Accurate Post-Training Quantization" (2022). Three things are added: the
weights aimed at make up for the errors of earlier layers (see layer_problem.py), descent over
single codes follows the pass, and scales are fitted to the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.numerics.codes import Codes
from octavo.rounding.layer_problem import LayerProblem, solved_alone
from octavo.rounding.lockstep import Lockstep, Pause
from octavo.rounding.methods.nearest import safe_scale

__all__ = ["gptq", "solution"]

_RATIOS = (0.85, 0.925, 1.0, 1.075)  # Scales tried, of the one that suits plain rounding.
_COSTLY = 1 << 17  # Weights of a layer beyond which one scale is tried.


def gptq(runs: Lockstep, pause: Pause) -> dict[str, Codes]:
    """Codes of the layer of a pause."""
    return solved_alone(runs, pause, solution)


def solution(layer: LayerProblem) -> tuple[Tensor, Tensor]:
    """Levels [G, R, K] and scales [G, R, 1 or K], the best of some starts in every row."""
    problem, scheme = layer.problem, layer.plain.scheme
    best: tuple[Tensor, Tensor, Tensor] | None = None
    several = problem.wanted.numel() <= _COSTLY and not scheme.per_tensor
    for ratio in _RATIOS if several else (1.0,):
        first = safe_scale(layer.start * ratio, scheme)
        codes, scale = problem.solve(first, scheme.group_size, not scheme.per_tensor)
        error = problem.errors(codes * scale)
        if best is None:
            best = codes, scale, error
        else:
            better = (error < best[2])[:, :, None]
            best = (
                torch.where(better, codes, best[0]),
                torch.where(better, scale, best[1]),
                torch.minimum(error, best[2]),
            )
    assert best is not None
    return best[:2]
