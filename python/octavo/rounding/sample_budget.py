"""The calls that runs in lockstep make: cut to fit into memory, joined where small.

What runs hold differs by orders of magnitude from the first layers of a convolutional network to
the last ones, and so does how many samples a layer needs: one image of 224 px has 12,544 positions
for a first layer, and 49 for a last one. So few samples start, and more join in behind: for them
the layers before are done.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from octavo.data import Batches, Call
from octavo.interrupts import let_through
from octavo.nn.kept_state import state_kept

__all__ = ["SampleBudget", "training_calls"]

_MERGED = 64  # Samples of one run: small batches are joined, so that there are few threads.
_RUNS = 256
_MEMORY = 3 << 30  # Bytes of activations that all runs together may hold.
# The same from 6 bits on, where more data gains next to nothing: MobileNetV2 at 8 bits has 22.9 dB
# at the logits with 64 images and 23.1 dB with 600. Not as much as one batch's activations either,
# unless they are next to nothing.
_LITTLE_MEMORY = 1 << 29
_LEAST_MEMORY = 1 << 26
_TRAINED = 32  # Samples of one call that gradients are taken of.
_HELD = 6  # Times the largest value: three values, in each of two runs.


@dataclass(frozen=True)
class SampleBudget:
    """Calls in the order in which runs start, and how many there may be.

    Attributes:
        calls: all that can be needed.
        given: samples in the data.
        held: layer to the bytes that the runs of one sample hold from there on.
        memory: bytes for all of them; one call is made in any case.
        late: whether calls are started behind the first layer too.
        repeated: layers that one call of the model calls several times.
    """

    calls: list[Call]
    given: int
    held: Mapping[str, float]
    memory: float
    late: bool
    repeated: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, model: nn.Module, batches: Batches, layers: Collection[str], few_bits: bool
    ) -> SampleBudget:
        """What the data gives for a model; the model is run once, on the first call.

        Args:
            model: in evaluation mode.
            batches: the data.
            layers: the layers to be rounded.
            few_bits: whether any of them gets fewer than 6 bits.
        """
        source = _source(model, batches)
        first = next(source, None)
        if first is None:
            return cls([], 0, {}, 0.0, False)
        sizes = _sizes(model, first)
        own = _bytes(first) / max(first.samples, 1)
        counts = Counter(name for name, _ in sizes if name in layers)
        repeated = frozenset(name for name, count in counts.items() if count > 1)
        held = _held(sizes, own)
        if repeated:  # Runs go on to their ends there, and keep what all layers get and give.
            everything = 2 * sum(size for _, size in sizes)
            held = {name: size + everything for name, size in held.items()}
        memory: float = _MEMORY
        if not few_bits:
            activations = sum(size for _, size in sizes) * first.samples
            memory = min(max(activations * 2 / 3, _LEAST_MEMORY), _LITTLE_MEMORY)
        largest = max(held.values(), default=own)
        at_once = memory / max(largest, 1)
        late = not few_bits and at_once < _MERGED
        # A run that joins in goes through all layers, beside the others that wait: half for each.
        merged = min(max(int(at_once / 2), 1), _MERGED) if late else _MERGED
        if late:
            memory -= merged * largest
        wanted = _MERGED if late else at_once
        calls: list[Call] = []
        taken = given = 0
        whole = itertools.chain([first], source)
        for call in _cut(whole, merged):
            given += call.samples
            if not calls or (taken + call.samples <= wanted and len(calls) < _RUNS):
                calls.append(call)
                taken += call.samples
        return cls(calls, given, held, memory, late, repeated)

    def room(self, layer: str | None) -> float:
        """Samples that runs may hold which wait at a layer (None: which start)."""
        largest = max(self.held.values(), default=1.0)
        return self.memory / max(self.held.get(layer or "", largest), 1)


def training_calls(model: nn.Module, batches: Batches) -> list[Call] | None:
    """Calls of 32 samples, or of as many as fit into memory with what gradients need.

    As much of the data as 3 GiB hold. None where a call that cannot be cut needs more than twice
    that.
    """
    taken: list[Call] = []
    room = float(_MEMORY)
    for call in _source(model, batches):
        room -= _bytes(call)
        if taken and room < 0:
            break
        taken.append(call)
    if not taken:
        return []
    each = sum(size for _, size in _sizes(model, taken[0])) or 1.0
    cut = list(_cut(iter(taken), int(min(max(_MEMORY / each, 1), _TRAINED))))
    return cut if all(call.samples * each <= 2 * _MEMORY for call in cut) else None


def _source(model: nn.Module, batches: Batches) -> Iterator[Call]:
    """The calls of the data, read one by one; those that a callable makes are recorded first."""
    calls = iter(batches.recorded(model)) if batches.runs_model else batches.calls(model)
    return (Call(*_trainable((call.args, call.kwargs))) for call in calls)


def _trainable(values: Any) -> Any:
    """Without tensors of inference mode, which gradients may not pass."""
    return tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, values)


def _sizes(model: nn.Module, call: Call) -> list[tuple[str, float]]:
    """Modules without children in the order of their calls, with a sample's bytes of results.

    All of the call: its first dimension may be time, along which layers are called again.
    """
    sizes: list[tuple[str, float]] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def measure(_module: nn.Module, _args: object, output: object) -> None:
            size = output.numel() * 4 if isinstance(output, Tensor) else 0
            sizes.append((name, size / max(call.samples, 1)))

        return measure

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad(), state_kept(model):
            let_through(model, *call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _held(sizes: list[tuple[str, float]], own: float) -> dict[str, float]:
    """Layer to what one sample's runs hold at its first call and from there on."""
    held: dict[str, float] = {}
    largest = 0.0
    before = [own, *(size for _, size in sizes)]
    for (name, size), given in zip(reversed(sizes), reversed(before[:-1]), strict=True):
        largest = max(largest, size, given)
        held[name] = own + _HELD * largest  # The first of several calls comes last.
    return held


def _bytes(call: Call) -> int:
    values = [*call.args, *call.kwargs.values()]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


def _cut(calls: Iterator[Call], size: int) -> Iterator[Call]:
    """Calls of ``size`` samples, small ones joined and large ones cut.

    Calls with keywords, or with arguments that are no tensors of one batch, stay as they are.
    """
    waiting: list[Call] = []
    for call in calls:
        kind = _kind(call)
        if waiting and kind != _kind(waiting[0]):
            yield from _joined(waiting, size)
            waiting = []
        if kind is None:
            yield call
            continue
        waiting.append(call)
        if sum(c.samples for c in waiting) >= size:
            *full, last = _joined(waiting, size)
            yield from full
            waiting = [last]
            if last.samples == size:
                yield last
                waiting = []
    if waiting:
        yield from _joined(waiting, size)


def _kind(call: Call) -> object:
    """What calls share that can be joined; None where a call cannot."""
    if call.kwargs or not all(isinstance(a, Tensor) and a.dim() > 1 for a in call.args):
        return None
    if not call.args or len({a.shape[0] for a in call.args}) != 1:
        return None
    return tuple((a.shape[1:], a.dtype) for a in call.args)


def _joined(calls: list[Call], size: int) -> list[Call]:
    columns = zip(*(call.args for call in calls), strict=True)
    cut = [torch.split(torch.cat(c) if len(c) > 1 else c[0], size) for c in columns]
    return [Call(args, {}) for args in zip(*cut, strict=True)]
