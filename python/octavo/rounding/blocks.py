"""What is rounded at a time: a layer alone, or a block of layers between two values of a flow.

A block is a stretch of a flow that begins and ends where a single value is alive (the output of a
residual sum, say). Stretches whose layers belong to one parent module form one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.flow import Flow, Step, evaluate, kept_values, refs, with_values
from octavo.graph.keys import ValueKey, wide
from octavo.nn.registry import facts_of
from octavo.numerics.codes import Codes
from octavo.planning.plan import FlowPlan, RegionPlan

__all__ = [
    "Block",
    "Layer",
    "Store",
    "apply_layer",
    "blocks_of",
    "channel_dimension",
    "finish",
    "keys_of",
    "last_uses",
    "walk_block",
]

Layer = Callable[[str, Tensor, bool], Tensor]
"""Computes a layer with integer weights: (name, input, whether outside of regions) -> output."""
Store = Callable[[ValueKey, Tensor], Tensor]
"""What is left of a value once it is stored in integers: (key of its range, value) -> value."""

_Steps = list[tuple[RegionPlan | None, Step]]
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of a flow.

    Attributes:
        steps: each with the region that runs it, None in float.
        layers: those with integer weights.
        inputs: values that it reads from before.
        outputs: values it makes that are read behind it.
        alive: all values that are read behind it.
    """

    flow: Flow
    steps: tuple[tuple[RegionPlan | None, Step], ...]
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    alive: frozenset[str]


def blocks_of(plan: FlowPlan, model: nn.Module, layers: frozenset[str]) -> tuple[Block, ...]:
    """The blocks of a flow, in execution order; together they are the whole flow."""
    steps: _Steps = []
    for item in plan.items:
        if isinstance(item, RegionPlan):
            steps += [(item, step) for step in item.steps]
        else:
            steps.append((None, item))
    last = last_uses(plan.flow, [step for _, step in steps])
    pieces: list[list[int]] = [[]]
    alive = {name for name in plan.flow.parameters if name in last}
    for position, (_, step) in enumerate(steps):
        pieces[-1].append(position)
        alive |= {part.output for part in step.fused or (step,)} | {step.output}
        alive = {name for name in alive if last.get(name, -1) > position}
        if len({wide(name) for name in alive}) == 1 and position + 1 < len(steps):
            pieces.append([])
    merged: list[list[int]] = []
    for piece in pieces:
        own, before = (_layers_of(steps, p, layers) for p in (piece, merged[-1] if merged else []))
        if merged and (not own or not before or _same_parent(own | before, model)):
            merged[-1] += piece
        else:
            merged.append(list(piece))
    return tuple(_block(plan.flow, steps, piece, layers, last) for piece in merged)


def _layers_of(steps: _Steps, piece: list[int], layers: frozenset[str]) -> dict[str, None]:
    """Layers with integer weights in a piece, in order."""
    parts = [part for at in piece for part in steps[at][1].fused or (steps[at][1],)]
    return {part.module: None for part in parts if part.module in layers}


def _same_parent(names: Iterable[str], model: nn.Module) -> bool:
    """Whether one module that is more than a list of others holds all of them as its children."""
    parents = {name.rpartition(".")[0] for name in names}
    parent = parents.pop()
    return bool(parent) and not parents and not isinstance(model.get_submodule(parent), _LISTS)


def _block(
    flow: Flow,
    steps: _Steps,
    piece: list[int],
    layers: frozenset[str],
    last: Mapping[str, int],
) -> Block:
    own = [steps[position] for position in piece]
    made: set[str] = set()
    read: list[str] = []
    for _, step in own:
        for part in step.fused or (step,):
            names = (*part.inputs, *refs(part.args), *refs(dict(part.kwargs)), *step.inputs)
            read += [name for name in names if name not in made and name not in read]
            made.add(part.output)
        made.add(step.output)
    found = tuple(_layers_of(steps, piece, layers))
    alive = frozenset(name for name, use in last.items() if use > piece[-1])
    inputs = tuple(name for name in read if name not in made)
    return Block(flow, tuple(own), found, inputs, tuple(sorted(made & alive)), alive)


def last_uses(flow: Flow, steps: list[Step]) -> dict[str, int]:
    """Index of the last step that reads each value, else of the one that defines it.

    Beyond the end for what the flow returns.
    """
    uses: dict[str, int] = {}
    for index, step in enumerate(steps):
        for part in step.fused or (step,):
            uses.setdefault(part.output, index)
            for name in (*part.inputs, *refs(part.args), *refs(dict(part.kwargs))):
                uses[name] = index
        uses |= dict.fromkeys(step.inputs, index)
    return uses | dict.fromkeys(kept_values(flow), len(steps))


def keys_of(block: Block) -> frozenset[ValueKey]:
    """Keys of the ranges with which the block's steps read values that are stored in integers."""
    keys = set()
    for region, step in block.steps:
        names = [*step.inputs]
        for part in step.fused or (step,):
            names += [*part.inputs, *refs(part.args), *refs(dict(part.kwargs))]
        owners = {region.params_of.get(name) for name in names} if region else set()
        keys |= {ValueKey(block.flow.path, owner) for owner in owners if owner is not None}
    return frozenset(keys)


def walk_block(
    block: Block, model: nn.Module, values: dict[str, Any], layer: Layer, store: Store
) -> None:
    """Computes the values of a block.

    Args:
        block: its layers and the steps of its flow.
        model: the float model.
        values: name to value; holds the block's inputs and gets its results, each as its step
            computes it.
        layer: called for each layer of the block in place of its float call.
        store: called as ``store(key, value)`` where a value inside a region is read; what it
            returns is read.
    """
    own = frozenset(block.layers)
    stored: dict[tuple[str, str], Any] = {}

    def read(region: RegionPlan | None, name: str) -> Any:
        owner = region.params_of.get(name) if region else None
        if owner is None:
            return values[name]
        assert region is not None
        if (region.name, name) not in stored:
            stored[region.name, name] = store(ValueKey(block.flow.path, owner), values[name])
        return stored[region.name, name]

    for region, step in block.steps:
        inside: dict[str, Any] = {}
        for part in step.fused or (step,):
            names = dict.fromkeys((*part.inputs, *refs(part.args), *refs(dict(part.kwargs))))
            given = {n: inside[n] if n in inside else read(region, n) for n in names}
            if part.module in own:
                x = next(refs(part.args), part.inputs[0])
                # The step may read its first input in another width than the call it stands for.
                x = x if x in inside else (*step.inputs, x)[0]
                given_x = inside[x] if x in inside else read(region, x)
                inside[part.output] = layer(part.module, given_x, region is None)
            else:
                given = _of_one_type(part, model, given)
                inside[part.output] = evaluate(part, model.get_submodule, given)
        values.update(inside)


def _of_one_type(part: Step, model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a float step of a model in another type than float32, which all layers give.

    As they are where the step has no tensors of that type.
    """
    own = model.get_submodule(part.module).parameters() if part.module else ()
    tensors = [v for v in (*given.values(), *own) if isinstance(v, Tensor)]
    others = {v.dtype for v in tensors if v.is_floating_point()} - {torch.float32}
    if len(others) != 1:
        return given
    (wanted,) = others
    return {
        name: v.to(wanted) if isinstance(v, Tensor) and v.dtype is torch.float32 else v
        for name, v in given.items()
    }


def finish(block: Block, values: Mapping[str, Any]) -> Any:
    """The flow's result, once its last block has been computed."""
    return with_values(block.flow.output, values)


def channel_dimension(y: Tensor, codes: Codes) -> int:
    """The dimension of a layer's output that its channels are."""
    spatial = codes.codes.dim() - 2  # Codes are [O, I], [O, I, k] or [O, I, kh, kw].
    return y.dim() - 1 - spatial


def apply_layer(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's own arithmetic with another weight (in canonical order) and bias.

    In the type of the weight.
    """
    facts = facts_of(module)
    if not facts.looks_up:
        x = x.to(weight.dtype)
    return facts.call_canonical(module, x, weight, bias)
