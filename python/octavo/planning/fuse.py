"""Fuses the steps of a region: fewer of them, and fewer results that are rounded to codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from octavo.graph.flow import Step
from octavo.graph.kinds import clamp_of
from octavo.ops.region_steps import PLANNED, PRODUCTS
from octavo.planning.region_plan import parts_of

__all__ = ["fused"]


def fused(
    steps: list[Step], outside: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[Step]:
    """Sums and clamps fused into what computes their operand, tables joined, float results."""
    steps = _fuse_sums(steps, outside, shapes)
    steps = _fuse_next(steps, outside, _fuse_clamp)
    steps = _fuse_next(steps, outside, _fuse_tables)
    read = _read_counts(steps)
    return [
        replace(step, kind=PLANNED[step.kind].float_form)
        if step.kind in PRODUCTS and len(step.inputs) == 1 and not read.get(step.output)
        else step
        for step in steps
    ]


def _joined(first: Step, second: Step, **changes: object) -> Step:
    """`first` with `second` computed in the same go."""
    params = {**first.params, **dict(changes.pop("params", {}))}  # type: ignore[call-overload]
    return replace(
        first,
        output=second.output,
        fused=parts_of(first) + parts_of(second),
        params=params,
        **changes,  # type: ignore[arg-type]
    )


def _read_counts(steps: Iterable[Step]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in steps:
        for value in step.inputs:
            counts[value] = counts.get(value, 0) + 1
    return counts


def _fuse_sums(
    steps: list[Step], outside: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[Step]:
    result: list[Step | None] = list(steps)
    at = {step.output: position for position, step in enumerate(steps)}
    read = _read_counts(steps)
    for position, step in enumerate(steps):
        if not PLANNED[step.kind].is_sum:
            continue
        # The later operand first. Either may wait for the other, since nothing else reads it.
        for value in sorted(step.inputs, key=lambda value: -at.get(value, -1)):
            product = result[at[value]] if value in at else None
            if (
                product is not None
                and product.kind in PRODUCTS
                and len(product.inputs) == 1
                and read[value] == 1
                and value not in outside
            ):
                (other,) = (v for v in step.inputs if v != value)
                result[position] = _joined(product, step, inputs=(product.inputs[0], other))
                result[at[value]] = None
                break
    return [step for step in result if step is not None]


def _fuse_next(steps: list[Step], outside: set[str], join: object) -> list[Step]:
    """Joins each step with the only reader of its result where ``join`` gives a step."""
    read = _read_counts(steps)
    result: list[Step] = []
    at: dict[str, int] = {}
    for step in steps:
        source = step.inputs[0]
        if len(step.inputs) == 1 and source in at and read[source] == 1 and source not in outside:
            joined = join(result[at[source]], step)  # type: ignore[operator]
            if joined is not None:
                position = at.pop(source)
                result[position] = joined
                at[step.output] = position
                continue
        at[step.output] = len(result)
        result.append(step)
    return result


def _fuse_clamp(first: Step, second: Step) -> Step | None:
    limits = clamp_of(second)
    if limits is None or not PLANNED[first.kind].clamps:
        return None
    lo, hi = first.params.get("lo", float("-inf")), first.params.get("hi", float("inf"))
    lo, hi = (min(max(v, limits[0]), limits[1]) for v in (lo, hi))
    return _joined(first, second, params={"lo": lo, "hi": hi})


def _fuse_tables(first: Step, second: Step) -> Step | None:
    kind = PLANNED[first.kind]
    if second.kind != first.kind or not kind.composes:
        return None
    if not kind.clamps:
        return replace(_joined(first, second), params={})
    return None if "lo" in first.params else _joined(first, second, params=second.params)
