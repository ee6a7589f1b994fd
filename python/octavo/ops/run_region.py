"""A stretch of a network in one call: a program (csrc/README.md) and its panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.ops import checks
from octavo.ops.region_program import parse

__all__ = ["region_constants", "run_region"]


def region_constants(panels: Sequence[Tensor], program: str) -> Tensor:
    """uint8 [bytes]: the numbers of ``run_region`` that follow from panels and program."""
    state = None if torch.compiler.is_compiling() else torch._C._get_tracing_state()
    if state is None:
        result: Tensor = torch.ops.octavo.region_constants(list(panels), program)
        return result
    # A traced graph takes the numbers as they are: torch takes the panels out of a list of
    # constants that it passes on, so that the next call would find an empty one.
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return region_constants(panels, program)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@checks.register_fake("octavo::region_constants")
def _(panels: Sequence[Tensor], program: str) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return torch.empty(size, dtype=torch.uint8)


def run_region(
    inputs: Sequence[Tensor], panels: Sequence[Tensor], constants: Tensor, program: str
) -> list[Tensor]:
    """The float32 results of a region program, in the order of its last line.

    Args:
        inputs: float32 tensors of any strides.
        panels: what the program's ``panel=`` numbers mean: panels of layers, tables and factors.
        constants: ``region_constants(panels, program)``.
        program: the text form that csrc/README.md describes.

    Raises:
        RuntimeError: from a backward pass through a result.
    """
    if checks.needs_refusal(inputs):
        recorded = _Refusing.apply(program, len(inputs), constants, *inputs, *panels)  # type: ignore[no-untyped-call]
        return list(recorded)
    result: list[Tensor] = torch.ops.octavo.run_region(
        [*inputs, *panels], len(inputs), constants, program
    )
    return result


@checks.register_fake("octavo::run_region")
def _(tensors: Sequence[Tensor], input_count: int, constants: Tensor, program: str) -> list[Tensor]:
    inputs, panels = tensors[:input_count], tensors[input_count:]
    for x in inputs:
        checks.check_dtype(x, torch.float32, "run_region: inputs")
    read = parse(program)
    shapes = read.shapes([x.shape for x in inputs], [p.numel() for p in panels])
    first = inputs[0]
    last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
    last = last and not first.is_contiguous()
    results = []
    for value in read.outputs:
        if last and read.layout(value) == "image":
            n, c, h, w = shapes[value]
            results.append(first.new_empty((n, h, w, c)).permute(0, 3, 1, 2))
        else:
            results.append(first.new_empty(shapes[value]))
    return results


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(
        program: str, count: int, constants: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        result = torch.ops.octavo.run_region(list(tensors), count, constants, program)
        return tuple(result)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        count = inputs[1]
        ctx.shapes = [x.shape for x in inputs[3 : 3 + count]]
        ctx.panels = len(inputs) - 3 - count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refused = [checks.refuse_gradient(gradients[0], shape) for shape in ctx.shapes]
        return (None, None, None, *refused, *[None] * ctx.panels)
