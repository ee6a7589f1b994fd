"""AdaRound layer by layer: up or down is learned, for the layer's output on what comes before it.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020), with the
inputs of the quantized prefix and the float outputs as targets. That error is quadratic in the
weights, so that its exact mean over all data follows from second moments: no batches are drawn.
Scales are those of plain rounding, weighed by what an error does to the output, and stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octavo.grids import neighbours
from octavo.rounding.codes import Codes
from octavo.rounding.layer_problem import LayerProblem, solved
from octavo.rounding.lockstep import Lockstep, Pause
from octavo.rounding.nearest import nearest, safe_scale
from octavo.rounding.quadratic import Moments, Problem
from octavo.rounding.soft import Soft, penalty
from octavo.scheme import Scheme

__all__ = ["adaround"]

_STEPS = 800
_RATE = 0.02
_PENALTY = 0.5  # Of the mean over a row's weights, where the error of plain rounding is 1.
_RATIOS = (0.8, 0.9, 1.0)  # Scales tried, of the one that suits plain rounding.


def adaround(runs: Lockstep, pause: Pause) -> dict[str, Codes]:
    """Codes of the layer of a pause."""
    return solved(runs, pause, learned)


def learned(module: nn.Module, weight: Tensor, scheme: Scheme, moments: Moments) -> Codes:
    """The codes that second moments lead to."""
    layer = LayerProblem.of(module, weight, scheme, moments)
    if layer is None:
        return nearest(weight, module._parameters.get("bias"), scheme)
    problem, start = layer.problem, layer.plain
    scale = _best_scale(problem, layer.start, scheme)
    u = problem.wanted / scale
    flat = u.reshape(-1, u.shape[2])
    near = neighbours(flat, scheme, start.levels, start.zero_point)
    low, high = (t.view(u.shape) for t in near)
    span = (high - low).clamp(min=1e-6)
    with torch.enable_grad():
        soft = Soft(low, high, (u - low) / span)
        _learn(soft, problem, scale)
    levels = soft.hard()
    plain = problem.snap(u)
    better = problem.errors(levels * scale) < problem.errors(plain * scale)
    return layer.codes(torch.where(better[:, :, None], levels, plain), scale)


def _best_scale(problem: Problem, start: Tensor, scheme: Scheme) -> Tensor:
    """[G, R, 1 or K]: of some scales the one whose plainly rounded row costs least."""
    if scheme.per_tensor:
        return start
    best, lowest = start, torch.full(problem.wanted.shape[:2], torch.inf)
    for ratio in _RATIOS:
        scale = safe_scale(start * ratio, scheme)
        error = problem.errors(problem.snap(problem.wanted / scale) * scale)
        best = torch.where((error < lowest)[:, :, None], scale, best)
        lowest = torch.minimum(error, lowest)
    return best


def _learn(soft: Soft, problem: Problem, scale: Tensor) -> None:
    """Descends on every row's error, in units of that of plain rounding, and on the penalty."""
    with torch.no_grad():
        plain = problem.snap(problem.wanted / scale) * scale
        unit = problem.errors(plain)
        unit = unit.clamp(min=max(float(unit.mean()) * 1e-6, 1e-30))
    optimizer = torch.optim.Adam([soft.v], lr=_RATE)
    for step in range(_STEPS):
        loss = (problem.errors(soft.levels() * scale) / unit).sum()
        unsure = penalty(soft.v, step / _STEPS)
        if unsure is not None:
            loss = loss + _PENALTY * unsure / soft.v.shape[2]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
