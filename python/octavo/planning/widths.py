"""Which values of a region share a range, and in how many bits each is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from octavo.graph.flow import Ref, Step
from octavo.graph.keys import Narrow
from octavo.ops.region_steps import PLANNED, PRODUCTS, TABLE
from octavo.planning.region_plan import RegionPlan

__all__ = ["shared_params", "with_bits"]


def shared_params(steps: list[Step], inputs: tuple[str, ...], outside: set[str]) -> dict[str, str]:
    """Which value's parameters each u8 value has."""
    params = {value: value for value in inputs}
    for step in steps:
        kind = PLANNED[step.kind]
        if not kind.gives_float:
            params[step.output] = params[step.inputs[0]] if kind.passes_codes else step.output
    for concat in reversed([step for step in steps if PLANNED[step.kind].is_list]):
        for value in concat.inputs:
            root = params[value]
            members = {member for member, found in params.items() if found == root}
            others = [
                step
                for step in steps
                if step is not concat
                and members.intersection(step.inputs)
                and not (PLANNED[step.kind].passes_codes and step.output in members)
            ]
            if not others and not members & outside and root != params[concat.output]:
                for member in members:
                    params[member] = params[concat.output]
    return params


def with_bits(
    region: RegionPlan, static: Mapping[str, int], own_inputs: frozenset[str], outside: set[str]
) -> RegionPlan:
    """Stores inputs of layers in the bits asked for, a second time where others need 8."""
    if all(static[name] == 8 for name in region.layers):
        return region
    asked: dict[str, set[int]] = {}
    for step in region.steps:
        kind = PLANNED[step.kind]
        for position, value in enumerate(step.inputs):
            root = region.params_of[value]
            if not (kind.passes_codes and region.params_of[step.output] == root):
                asked.setdefault(root, set()).add(
                    static[step.module] if kind.is_product and position == 0 else 8
                )
    for value in outside:
        if value in region.params_of:
            asked.setdefault(region.params_of[value], set()).add(8)
    sums = {s.output for s in region.steps if PLANNED[s.kind].is_list}
    fixed = {region.params_of[v] for v in region.params_of if v in own_inputs} | sums
    bits = {
        root: next(iter(wanted))
        for root, wanted in asked.items()
        if len(wanted) == 1 and root not in fixed and wanted != {8}
    }
    params_of = dict(region.params_of)
    steps: list[Step] = []
    for step in region.steps:
        if step.kind in PRODUCTS:
            value, wanted = step.inputs[0], static[step.module]
            root = region.params_of[value]
            if wanted != bits.get(root, 8) and root not in _own(region, own_inputs):
                narrow = str(Narrow(value, wanted))
                if narrow not in params_of:
                    steps.append(
                        Step(
                            TABLE.planned, (value,), narrow, function="identity", args=(Ref(value),)
                        )
                    )
                    params_of[narrow] = narrow
                    bits[narrow] = wanted
                steps.append(replace(step, inputs=(narrow, *step.inputs[1:])))
                continue
        steps.append(step)
    return replace(region, steps=tuple(steps), params_of=params_of, bits=bits)


def _own(region: RegionPlan, own_inputs: frozenset[str]) -> set[str]:
    """Parameters of the model's own inputs: layers read these in 8 bits."""
    return {region.params_of[value] for value in region.inputs if value in own_inputs}
