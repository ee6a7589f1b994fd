"""Random modules compute, quantized, what they compute in float, and leave the state they leave.

OCTAVO_SUITE=ci runs 5,000 programs. A failure prints its program; OCTAVO_PROGRAM=17 runs that one.
"""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from random_modules import Program, random_program

BOUND = 0.06
_AT_ONCE = 10
# Samples, what is added to free sizes, whether settings change before.
_CALLS = [(8, 0, False), (7, 0, False), (1, 0, False), (3, 0, False), (1, 0, False), (2, 0, False),
          (4, 2, False), (3, 3, False), (5, 0, True), (1, 0, False)]  # fmt: skip


def fault(program: Program, static: bool, bound: float = BOUND) -> str:
    """What a quantized program does that the float one does not, "" where both agree."""
    model, change = program.build()
    before = state(model)
    sizes = [8, 1, 3, 64, 2, 7, 1, 128, 4, 5, 1]
    data = [program.inputs(n, 100 + index) for index, n in enumerate(sizes)] if static else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = octavo.quantize(model, 8, data=data, progress=False)
    if distance(before, state(model), {}, "") > 0:
        return "quantize changed the state of the float model"
    if distance(before, state(quantized), {}, "") > 0.02:
        return "quantize changed the state that the quantized model begins with"
    sizes_of: dict[str, float] = {}
    for number, (samples, larger, changed) in enumerate(_CALLS):
        if changed:
            change(model)
            change(quantized)
        x = program.inputs(samples, number, larger)
        if not runs(model, x):
            continue
        given, again = x.clone(), x.clone()
        with torch.no_grad():
            wanted = model(given)
            try:
                got = quantized(again)
            except Exception as error:  # Whatever it is, the float model does not raise it.
                return f"call {number} of {samples} raises {type(error).__name__}: {error}"
        pairs = [("the result", wanted, got), ("the argument", given, again),
                 ("the state", state(model), state(quantized))]  # fmt: skip
        for what, one, other in pairs:
            found = distance(one, other, sizes_of, what)
            if not found <= bound:
                return f"call {number} of {samples} (+{larger}): {what} differs by {found:.3g}"
            worst[what] = max(worst.get(what, 0.0), found)
    return ""


worst: dict[str, float] = {}


def runs(model: nn.Module, x: Tensor) -> bool:
    """Whether the float model takes such a call, in the state that it is in."""
    try:
        with torch.no_grad():
            copy.deepcopy(model)(x.clone())
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return True


def state(model: nn.Module) -> dict[str, Any]:
    """Buffers and plain attributes of the program's own classes, as they are now."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if type(module).__module__ != "random_module":
            continue
        own = {**module._buffers, **{k: v for k, v in vars(module).items() if k[-1].isdigit()}}
        found |= {f"{path}.{key}": copy.deepcopy(value) for key, value in own.items()}
    return found


def distance(one: Any, other: Any, sizes: dict[str, float], where: str) -> float:
    """The largest relative L2 distance of two tensors in equal places; infinite where others are.

    Relative to the tensor, or to the largest root mean square that a tensor in that place had.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        if not one.is_floating_point():
            return 0.0 if torch.equal(one, other) else float("inf")
        one, other = one.double(), other.double()
        size = float(one.square().mean().sqrt()) if one.numel() else 0.0
        sizes[where] = size = max(size, sizes.get(where, 0.0))
        error = float((one - other).square().mean().sqrt()) if one.numel() else 0.0
        return error / size if size else (0.0 if error == 0 else float("inf"))
    if type(one) is not type(other):
        return float("inf")
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return float("inf")
        parts: Any = zip(one, other, itertools.count(), strict=False)
    elif isinstance(one, dict):
        if list(one) != list(other):
            return float("inf")
        parts = ((one[key], other[key], key) for key in one)
    elif isinstance(one, float):
        return abs(one - other) / max(abs(one), 1e-9)
    else:
        return 0.0 if one is other or one == other else float("inf")
    return max((distance(a, b, sizes, f"{where}.{key}") for a, b, key in parts), default=0.0)


def _seeds() -> list[range]:
    if "OCTAVO_PROGRAM" in os.environ:
        first = int(os.environ["OCTAVO_PROGRAM"])
        return [range(first, first + 1)]
    many = 5000 if os.environ.get("OCTAVO_SUITE") == "ci" else 60
    return [range(first, min(first + _AT_ONCE, many)) for first in range(0, many, _AT_ONCE)]


@pytest.mark.parametrize("seeds", _seeds(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_a_random_module_computes_what_it_does_in_float(seeds: range) -> None:
    for seed in seeds:
        program = random_program(seed)
        for static in (False, True):
            found = fault(program, static)
            assert not found, (
                f"program {seed}, {'static' if static else 'dynamic'}: {found}\n{program}"
            )
