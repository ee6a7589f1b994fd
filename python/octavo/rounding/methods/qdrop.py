"""Rounding learned block by block: AdaRound's variables, the block's output error, dropped noise.

Each code is the level below or above (see soft.py). Li et al., "BRECQ" (2021): the loss is that of
the output of a block. Wei et al., "QDrop" (2022): half of the elements of stored values, drawn
again in each step, stay unquantized, and steps of values of fewer than 8 bits are learned too.
AdaRound's codes of single layers are where it starts, and what does not lower the error on samples
held out is not kept.

In blocks with depthwise convolutions those codes stay, since learned ones gain nothing there (two
blocks of MobileNetV2 at 4 bits: 1.00 of the error at the start, learned scales 0.98); scales and
biases are learned by the same loss, as in Chen et al., "EfficientQAT" (2024). Elsewhere, and with
fewer bits, they are not: errors of blocks fell in ResNet-20 at 2 bits, and its accuracy from
89.75 % to 89.24 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from octavo import ops
from octavo.graph.keys import RangeKey, ValueKey
from octavo.nn.registry import is_depthwise, layer_bias
from octavo.numerics.codes import Codes
from octavo.numerics.scheme import QParams
from octavo.rounding.blocks import apply_layer, walk_block
from octavo.rounding.layer_problem import solved, solved_alone
from octavo.rounding.learnable import Learnable, LearnableCodes, LearnableScales, descend
from octavo.rounding.lockstep import Lockstep, Pause, fake_quantize
from octavo.rounding.methods.adaround import solution

__all__ = ["qdrop"]

_SAMPLES = 32  # In each step.
_HELD_OUT = 8  # One sample in this many is held out.
_STEP_WAY = 1.0  # `Learnable.way` of the logarithm of a step of values.
_PENALTY = 1.0  # Of the mean over a block's weights, where the error at the start is 1.
_DROP = 0.5
_SCALED_BITS = 4  # From which on scales are learned.
_LAST_RATE = 0.2  # Of the first: variables must still reach their ends.


def qdrop(runs: Lockstep, pause: Pause) -> dict[str, Codes]:
    """Codes of the layers of a pause; the steps of its values are learned too.

    Args:
        runs: the runs in lockstep; learned steps are put into their ``qparams``.
        pause: the block that the runs have reached.

    Returns:
        Layer to codes.
    """
    codes = _layer_by_layer(runs, pause)
    if pause.block is None or len(pause.layers) < 2:
        return codes  # For a layer alone AdaRound minimises the same error, and better.
    kind = _kind(runs, codes)
    data = _Samples.of(pause) if kind is not None else None
    if kind is None or data is None:
        return codes
    before = _error(runs, pause, codes, data, {})
    with torch.enable_grad():
        learned, params = _learned(runs, pause, codes, before, data, kind)
    if _error(runs, pause, learned, data, params) >= before:
        return codes
    runs.qparams |= params
    return learned


def _kind(runs: Lockstep, codes: dict[str, Codes]) -> type[Learnable] | None:
    """What is learned of a block's layers; None: nothing."""
    if not any(is_depthwise(runs.model.get_submodule(name)) for name in codes):
        return LearnableCodes
    few = any(code.scheme.bits < _SCALED_BITS for code in codes.values())
    return None if few else LearnableScales


# ---- the start -----------------------------------------------------------------------------------


def _layer_by_layer(runs: Lockstep, pause: Pause) -> dict[str, Codes]:
    """AdaRound's codes of the layers of a pause, one after the other."""
    if pause.block is None:
        return solved_alone(runs, pause, solution)
    codes: dict[str, Codes] = {}
    for name in pause.layers:
        inputs, targets = [], []
        for quantized, in_float in zip(pause.inputs, pause.float_inputs, strict=True):
            inputs.append(_seen(runs, pause, quantized, name, codes))
            targets.append(_seen(runs, pause, in_float, name, None))
        codes[name] = solved(runs, name, [x for x, _ in inputs], [y for _, y in targets], solution)
    return codes


class _Reached(Exception):
    """Ends a walk where a layer has been reached."""


def _seen(
    runs: Lockstep,
    pause: Pause,
    values: dict[str, Any],
    wanted: str,
    codes: dict[str, Codes] | None,
) -> tuple[Tensor, Tensor]:
    """Input and float output of a layer of a block; ``codes`` None: in float."""
    found: list[tuple[Tensor, Tensor]] = []

    def layer(name: str, x: Tensor, alone: bool) -> Tensor:
        module = runs.model.get_submodule(name)
        x = runs.stored_input(name, x) if alone and codes is not None else x
        if name == wanted or codes is None:
            bias = layer_bias(module)
            bias = None if bias is None else bias.float()
            y = apply_layer(module, x.float(), runs.weights[name].float(), bias)
            if name != wanted:
                return y.to(x.dtype)
            found.append((x, y))
            raise _Reached
        return apply_layer(module, x, codes[name].dequantize(), codes[name].bias)

    store = runs.stored if codes is not None else _unstored
    assert pause.block is not None
    try:
        walk_block(
            pause.block, runs.model, {k: _copied(v) for k, v in values.items()}, layer, store
        )
    except _Reached:
        return found[0]
    raise AssertionError(wanted)


def _unstored(_key: ValueKey, x: Tensor) -> Tensor:
    return x


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


# ---- learning ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Samples:
    """Inputs and outputs of a block, all batches joined.

    Attributes:
        held: samples held out, by which the result is judged.
    """

    inputs: dict[str, Tensor]
    float_inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    learn: Tensor
    held: Tensor

    @classmethod
    def of(cls, pause: Pause) -> _Samples | None:
        """None where values are no tensors of samples that can be joined, or there are too few."""
        joined = []
        for batches in (pause.inputs, pause.float_inputs, pause.targets):
            columns: dict[str, Tensor] = {}
            for name in batches[0]:
                parts = [batch[name] for batch in batches]
                if not all(isinstance(p, Tensor) and p.is_floating_point() for p in parts):
                    return None
                if len({p.shape[1:] for p in parts}) != 1:
                    return None
                columns[name] = torch.cat(parts)
            joined.append(columns)
        counts = {len(t) for columns in joined for t in columns.values()}
        if len(counts) != 1 or (count := counts.pop()) < 2 * _HELD_OUT:
            return None
        index = torch.arange(count)
        held = index % _HELD_OUT == 0
        return cls(joined[0], joined[1], joined[2], index[~held], index[held])


class _Step:
    """The step of a stored value while it is learned: LSQ (arXiv 1902.08153), by its logarithm."""

    def __init__(self, params: QParams) -> None:
        self.params = params
        self.growth = torch.zeros(1, dtype=torch.float32, requires_grad=True)
        self._zero_point = torch.tensor([float(params.zero_point)], dtype=torch.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` in its codes; gradients to x and to the step."""
        scale = self.params.scale * self.growth.exp()
        return ops.fake_quantize_learned(x, scale, self._zero_point, qmin=0, qmax=self.params.qmax)

    def hard(self) -> QParams:
        """The parameters learned."""
        scale = torch.tensor(self.params.scale, dtype=torch.float32) * self.growth.detach()[0].exp()
        return dataclasses.replace(self.params, scale=float(scale))


def _learned(  # noqa: PLR0917 (all of a block)
    runs: Lockstep,
    pause: Pause,
    start: dict[str, Codes],
    before: float,
    data: _Samples,
    kind: type[Learnable],
) -> tuple[dict[str, Codes], dict[RangeKey, QParams]]:
    """Codes of the block's layers, and parameters of values that nothing but the block reads.

    ``before`` is the error of ``start``.
    """
    block = pause.block
    assert block is not None
    layers = {name: kind(runs.weights[name], start[name]) for name in pause.layers}
    few = {key: runs.qparams[key] for key in runs.own_keys(block)}
    steps = {key: _Step(p) for key, p in few.items() if p.bits < 8}
    groups = [
        {"params": [own.learned for own in layers.values()], "lr": kind.way / kind.steps},
        {"params": [own.bias for own in layers.values()], "lr": 0.2 * _scale_of(data) / kind.steps},
    ]
    if steps:
        groups.append({"params": [s.growth for s in steps.values()], "lr": _STEP_WAY / kind.steps})
    optimizer = torch.optim.Adam(groups)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, _LAST_RATE, kind.steps)
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, x: Tensor, alone: bool) -> Tensor:
        module = runs.model.get_submodule(name)
        x = _through(x, runs.stored_input(name, x.detach())) if alone else x
        return apply_layer(module, x, layers[name].weight(), layers[name].bias)

    def store(key: ValueKey, x: Tensor) -> Tensor:
        if key in steps:
            stored = steps[key](x)
        else:
            stored = _through(x, fake_quantize(x.detach(), runs.qparams[key]))
        return torch.where(
            torch.rand(x.shape, generator=generator, dtype=torch.float32) < _DROP, x, stored
        )

    unit = max(before / len(data.held), 1e-12)
    weights = sum(own.codes.codes.numel() for own in layers.values())
    for step in range(kind.steps):
        draw = torch.randint(len(data.learn), (_SAMPLES,), generator=generator)
        chosen = data.learn[draw]
        values: dict[str, Any] = {}
        for name, x in data.inputs.items():
            picked, in_float = x[chosen], data.float_inputs[name][chosen]
            kept = torch.rand(picked.shape, generator=generator, dtype=torch.float32) < _DROP
            values[name] = torch.where(kept, in_float, picked)
        walk_block(block, runs.model, values, layer, store)
        loss = _distance(values, data.targets, chosen) / unit
        for own in layers.values():
            unsure = own.unsure(step / kind.steps)
            if unsure is not None:
                loss = loss + _PENALTY / weights * unsure
        descend(optimizer, loss)
        slower.step()
    codes = {name: own.hard() for name, own in layers.items()}
    return codes, {key: step.hard() for key, step in steps.items()}


def _scale_of(data: _Samples) -> float:
    """Typical size of the outputs."""
    return max(float(next(iter(data.targets.values())).std()), 1e-6)


def _through(x: Tensor, stored: Tensor) -> Tensor:
    """``stored``, with the gradient of ``x``."""
    return x + (stored - x).detach()


def _distance(values: dict[str, Any], targets: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """Squared error of the outputs, summed over channels, mean over everything else."""
    total = torch.zeros((), dtype=torch.float32)
    for name, target in targets.items():
        off = (values[name] - target[chosen]).square()
        axis = 1 if off.dim() in (3, 4) else -1
        total = total + off.sum(axis).mean()
    return total


def _error(
    runs: Lockstep,
    pause: Pause,
    codes: dict[str, Codes],
    data: _Samples,
    params: dict[RangeKey, QParams],
) -> float:
    """Of codes, and of parameters in the place of the runs' own, on the samples held out."""

    def layer(name: str, x: Tensor, alone: bool) -> Tensor:
        module = runs.model.get_submodule(name)
        x = runs.stored_input(name, x) if alone else x
        return apply_layer(module, x, codes[name].dequantize(), codes[name].bias)

    def store(key: ValueKey, x: Tensor) -> Tensor:
        return fake_quantize(x, params.get(key) or runs.qparams[key])

    assert pause.block is not None
    total = 0.0
    for part in _chunks(data.held):
        values: dict[str, Any] = {name: x[part] for name, x in data.inputs.items()}
        walk_block(pause.block, runs.model, values, layer, store)
        total += float(_distance(values, data.targets, part)) * len(part)
    return total


def _chunks(index: Tensor) -> Iterator[Tensor]:
    yield from torch.split(index, _SAMPLES)
