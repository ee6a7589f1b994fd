"""Runs a model in float and as the integers will, side by side, halting where something is rounded.

Every batch has two runs, each a call of the model in a thread of its own; exactly one of all
threads runs at any time. A run halts in front of (float: behind) every layer or block that has no
integers yet. When the runs of all batches have come to the same place, the caller gets their inputs
and outputs, rounds, and the runs go on with the integers; where there is room, more runs join in.
So each layer is rounded on what the rounded layers before it give, with one pass over the data,
whatever the model's forward does. A layer that one call of the model calls several times (recurrent
networks, shared weights) is rounded on what all these calls have in the float model, since its own
integers decide what later calls would get.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from octavo import ops
from octavo.data import Batches, Call
from octavo.graph.flow import Flow, bound
from octavo.graph.keys import RangeKey, SiteKey, ValueKey
from octavo.graph.replay import replayed
from octavo.graph.sizes import is_symbol
from octavo.interrupts import let_through
from octavo.nn.decomposed.experts import DecomposedExperts
from octavo.nn.forwards import replaced_forwards
from octavo.nn.registry import canonical_weight, facts_of
from octavo.numerics.codes import Codes
from octavo.numerics.scheme import MIN_SCALE, QParams
from octavo.planning.plan import FlowPlan, Plan, SitePlan
from octavo.rounding.blocks import Block, apply_layer, blocks_of, finish, keys_of, walk_block
from octavo.rounding.sample_budget import SampleBudget

__all__ = ["Lockstep", "Pause", "fake_quantize"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pause:
    """A layer or block that has no integers yet, reached by the runs.

    Attributes:
        layers: names of its layers.
        block: None for a layer alone.
        inputs: of each batch, as the rounded layers before give them; a layer's are in their codes,
            a block's are not yet.
        float_inputs, targets: of each batch, of the float model. For a block these are {value:
            tensor}, for a layer tensors; of what is called several times the lists have as many
            entries as needed.
    """

    layers: tuple[str, ...]
    block: Block | None
    inputs: list[Any]
    float_inputs: list[Any]
    targets: list[Any]


def fake_quantize(x: Tensor, p: QParams) -> Tensor:
    """What the integers stand for: scale * (q - zero_point), by octavo's own operators."""
    return ops.dequantize(ops.quantize(x, p.scale, p.zero_point, p.qmax), p.scale, p.zero_point)


def fake_quantize_rows(x: Tensor, spatial: int) -> Tensor:
    """What 8-bit codes with dynamic parameters stand for, of the shape of ``x``.

    Each row has a range of its own; of convolutions, each sample.

    Args:
        x: float32 [..., K], or [N, C, spatial dimensions].
        spatial: how many dimensions follow the channels, 0 for rows.
    """
    over = tuple(range(x.dim() - 1 - spatial, x.dim()))
    low = x.amin(over, keepdim=True).clamp(max=0)
    high = x.amax(over, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=MIN_SCALE)
    zero = (-low / scale).round()
    return ((x / scale).round().maximum(-zero).minimum(255 - zero)) * scale


class Lockstep:
    """Both kinds of runs of one model over some batches.

    Args:
        model: the float model of the plan, folded. It comes back as it was when `close` is called,
            at the latest.
        plan: what is stored in integers.
        batches: the data.
        qparams: the plan's ranges, by the keys of `octavo.prepare.calibrate`.
        flows: captured modules to round block by block, with their regions if any.
        blockwise: whether layers in flows are rounded block by block.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        batches: Batches,
        *,
        qparams: Mapping[RangeKey, QParams],
        flows: Sequence[FlowPlan] = (),
        blockwise: bool = False,
    ) -> None:
        self.model = model
        self.qparams = dict(qparams)
        self.codes: dict[str, Codes] = {}
        self.sites: dict[str, SitePlan] = {s.name: s for s in plan.sites if s.scheme is not None}
        self.weights = {name: canonical_weight(model.get_submodule(name)) for name in self.sites}
        names = frozenset(self.sites)
        self.plans = {id(p.flow): p for p in flows}
        self.blocks = {id(p.flow): blocks_of(p, model, names) for p in flows} if flows else {}
        self.blockwise = blockwise
        self._routed = {
            f"{name}.{layer}"
            for name, experts in model.named_modules()
            if isinstance(experts, DecomposedExperts)
            for layer, _ in experts.named_modules()
        }
        self._stack = ExitStack()
        self._pairs: list[tuple[_Run, _Run]] = []
        few_bits = any(s.scheme is not None and s.scheme.bits < 6 for s in self.sites.values())
        self._supply = SampleBudget.of(model, batches, names, few_bits)
        self.given = self._supply.given
        """Samples in the data."""
        self.samples = 0
        """Samples of the runs that have started."""

    def __iter__(self) -> Iterator[Pause]:
        """Every layer or block in the order of execution; ``codes`` must have its layers after."""
        try:
            with self._stack:
                self._install()
                yield from self._pauses()
        finally:
            for pair in self._pairs:
                for run in pair:
                    run.stop()
            for pair in self._pairs:
                for run in pair:
                    run.join()

    # ---- runs

    def _install(self) -> None:
        replace = self._stack.enter_context(replaced_forwards())
        for name in self.sites:
            replace(self.model.get_submodule(name), self._stand_in(name))
        flows = [plan.flow for plan in self.plans.values()]
        self._stack.enter_context(replayed(self.model, flows, self._flow))

    def _pauses(self) -> Iterator[Pause]:
        waiting: list[dict[object, _Halt]] = []
        at: list[_Halt | None] = []
        self._start(None, at, waiting)
        while any(at):
            unit = next(halt.unit for halt in at if halt)
            if self._supply.late:
                self._start(unit, at, waiting)
            members = [i for i, halt in enumerate(at) if halt and halt.unit == unit]
            halts = [halt for halt in at if halt and halt.unit == unit]
            if self._is_repeated(unit):
                pairs = [x for i in members for x in self._float_calls(i, unit, waiting[i])]
                halts = [self._in_codes(halt) for halt in pairs]
            else:
                pairs = [
                    self._counterpart(self._float(i, unit, waiting[i]), halt)
                    for i, halt in zip(members, halts, strict=True)
                ]
            yield Pause(
                _layers(unit),
                unit if isinstance(unit, Block) else None,
                [halt.inputs for halt in halts],
                [pair.inputs for pair in pairs],
                [pair.outputs for pair in pairs],
            )
            del pairs, halts
            for i in members:
                at[i] = None
                at[i] = self._pairs[i][1].advance()

    def _start(
        self, unit: str | Block | None, at: list[_Halt | None], waiting: list[dict[object, _Halt]]
    ) -> None:
        """Starts as many more runs as there is room for where the others wait."""
        layers = _layers(unit) if unit else ()
        room = self._supply.room(layers[0] if layers else None)
        for call in self._supply.calls[len(self._pairs) :]:
            if self._pairs and self.samples + call.samples > room:
                return
            self._pairs.append((_Run(self.model, call, False), _Run(self.model, call, True)))
            self.samples += call.samples
            waiting.append({})
            at.append(self._pairs[-1][1].advance())

    def _float(self, index: int, unit: object, waiting: dict[object, _Halt]) -> _Halt | None:
        """What the float run of a batch has at ``unit``; None if it does not come there."""
        run = self._pairs[index][0]
        while unit not in waiting:
            halt = run.advance()
            if halt is None:
                return None
            waiting[halt.unit] = halt if halt.unit == unit else halt.cloned()
        return waiting.pop(unit)

    def _is_repeated(self, unit: str | Block) -> bool:
        return not self._supply.repeated.isdisjoint(_layers(unit))

    def _float_calls(
        self, index: int, unit: str | Block, waiting: dict[object, _Halt]
    ) -> list[_Halt]:
        """What the float run of a batch has in all calls of a unit: it goes on to its end."""
        run = self._pairs[index][0]
        while (halt := run.advance()) is not None:
            waiting[halt.unit] = halt.cloned()
        kept = run.kept.pop(unit, [])
        if isinstance(unit, Block):
            return kept
        alike: dict[object, list[_Halt]] = {}
        for halt in kept:
            alike.setdefault((halt.inputs.shape[1:], halt.outputs.shape[1:]), []).append(halt)
        return [_Halt(unit, *map(torch.cat, _columns(halts))) for halts in alike.values()]

    def _in_codes(self, halt: _Halt) -> _Halt:
        """A float run's halt with a layer's input as it is stored."""
        if isinstance(halt.unit, Block):
            return halt
        return _Halt(halt.unit, self.stored_input(halt.unit, halt.inputs))

    def _counterpart(self, wanted: _Halt | None, halt: _Halt) -> _Halt:
        """What a quantized run's halt is compared with.

        A router may send other samples to a layer than in the float run.
        """
        if wanted is None or halt.unit in self._routed:
            return self._answered(halt)
        return wanted if _shapes(wanted.inputs) == _shapes(halt.inputs) else self._answered(halt)

    def _answered(self, halt: _Halt) -> _Halt:
        """A halt of a quantized run with what the float layers say to its inputs."""
        if isinstance(halt.unit, str):
            return _Halt(halt.unit, halt.inputs, self._float_layer(halt.unit, halt.inputs))
        values = dict(halt.inputs)
        walk_block(halt.unit, self.model, values, self._float_layer, lambda _key, x: x)
        return _Halt(halt.unit, halt.inputs, {n: values[n] for n in halt.unit.outputs})

    # ---- what stands for forwards meanwhile

    def _stand_in(self, name: str) -> Callable[..., Tensor]:
        """Forward of a layer that is called outside of flows."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            run = _Run.current()
            if not run.quantized:
                return self._halting_float_layer(name, x)
            # As one task each: every function of torch would change threads twice.
            stored = run.outside(lambda: self.stored_input(name, x))
            if name not in self.codes:
                run.halt(_Halt(name, stored))
            y: Tensor = run.outside(lambda: self.layer(name, stored))
            return y.to(x.dtype) if x.is_floating_point() else y

        return forward

    def _flow(self, flow: Flow, tensors: tuple[Tensor, ...]) -> Any:
        run = _Run.current()
        values = bound(flow, tensors)
        assert values is not None  # Other calls do not come here.
        for block in self.blocks[id(flow)]:
            whole = self.blockwise and bool(block.layers)
            inputs = {name: values[name] for name in block.inputs}
            if run.quantized:
                if whole and block.layers[0] not in self.codes:
                    run.halt(_Halt(block, inputs))
                walk_block(block, self.model, values, self._halting_layer, self.stored)
            else:
                wanted = whole and block.layers[0] not in self.codes
                kept = {n: _clone(v) for n, v in inputs.items()} if wanted else {}
                layer = self._float_layer if whole else self._halting_float_layer
                walk_block(block, self.model, values, layer, lambda _key, x: x)
                if wanted:
                    self._give(_Halt(block, kept, {n: values[n] for n in block.outputs}))
            for name in [n for n in values if n not in block.alive and not is_symbol(n)]:
                del values[name]
        return finish(block, values)

    def _float_layer(self, name: str, x: Tensor, _alone: bool = True) -> Tensor:
        module = self.model.get_submodule(name)
        y: Tensor = type(module).forward(module, x)  # type: ignore[arg-type]
        return y

    def _halting_float_layer(self, name: str, x: Tensor, _alone: bool = True) -> Tensor:
        y = self._float_layer(name, x)
        if name in self.codes:  # Those that start late need no targets of layers that are done.
            return y
        self._give(_Halt(name, x, y))
        return y

    def _give(self, halt: _Halt) -> None:
        """What a float run has at a unit."""
        run = _Run.current()
        if self._is_repeated(halt.unit):
            run.kept.setdefault(halt.unit, []).append(run.outside(halt.cloned))
        else:
            run.halt(halt)

    def _halting_layer(self, name: str, x: Tensor, alone: bool) -> Tensor:
        x = self.stored_input(name, x) if alone else x
        if name not in self.codes:
            _Run.current().halt(_Halt(name, x))
        return self.layer(name, x)

    # ---- values as the integers have them

    def own_keys(self, block: Block) -> frozenset[ValueKey]:
        """Keys of ranges that no other block reads a value with."""
        others = [b for b in self.blocks[id(block.flow)] if b is not block]
        found = keys_of(block).difference(*map(keys_of, others))
        return found & self.qparams.keys()

    def stored(self, key: ValueKey, x: Tensor) -> Tensor:
        """A value of a region, in its codes."""
        return fake_quantize(x, self.qparams[key])

    def stored_input(self, name: str, x: Tensor) -> Tensor:
        """The input of a layer that runs alone, in its codes."""
        site = self.sites[name]
        if site.activations == "float":
            return x.to(torch.float32) if x.is_floating_point() else x
        x = x.to(torch.float32)
        p = self.qparams.get(SiteKey(name))
        if site.activations == "static" and p is not None:
            return fake_quantize(x, p)
        if site.activations == "dynamic":
            module = self.model.get_submodule(name)
            return fake_quantize_rows(x, len(facts_of(module).window(module)))
        return x

    def layer(self, name: str, x: Tensor) -> Tensor:
        """A rounded layer's output."""
        code, module = self.codes[name], self.model.get_submodule(name)
        return apply_layer(module, x, code.dequantize(), code.bias)


# ---- runs ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Halt:
    """Where a run stands: at a layer's name or a block, with inputs (in float with outputs too)."""

    unit: str | Block
    inputs: Any
    outputs: Any = None

    def cloned(self) -> _Halt:
        """The same with tensors that later steps cannot write into."""
        return _Halt(self.unit, _clone(self.inputs), _clone(self.outputs))


class _Stopped(BaseException):
    """Unwinds the thread of a run that is not wanted any more."""


class _Run:
    """One call of a model in a thread that runs only while `advance` waits for it.

    Attributes:
        kept: of units that are called several times, inputs and outputs of all calls.
    """

    _local = threading.local()

    def __init__(self, model: nn.Module, call: Call, quantized: bool) -> None:
        self.quantized = quantized
        self._model, self._call = model, call
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._halt: _Halt | None = None
        self._task: Callable[[], Any] | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._stopping = False  # Told to stop.
        self._leaving = False  # On the way out: what `finally` and `with` do is done right there.
        self._done = False
        self._seen: set[object] = set()
        self.kept: dict[str | Block, list[_Halt]] = {}
        self._thread = threading.Thread(target=self._body, daemon=True)

    @classmethod
    def current(cls) -> _Run:
        """The run that the calling thread belongs to."""
        run: _Run = cls._local.run
        return run

    def outside(self, task: Callable[[], Any]) -> Any:
        """What a task gives, done in the thread that the run is advanced from."""
        if self._leaving:
            return task()
        self._leave_if_stopped()
        self._task = task
        self._back.release()
        self._go.acquire()
        self._leave_if_stopped()
        answer, self._answer = self._answer, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def advance(self) -> _Halt | None:
        """Goes on to the next halt; None at the end."""
        if self._thread.ident is None:
            self._thread.start()
        elif self._done:
            return None
        self._go.release()
        let_through(self._back.acquire)  # Whatever the model does meanwhile.
        while self._task is not None:
            task, self._task = self._task, None
            try:
                with torch.no_grad():
                    self._answer = task()
            except Exception as error:  # The model's, who may handle it.
                self._answer = error
            del task
            self._go.release()
            let_through(self._back.acquire)
        halt, self._halt = self._halt, None
        if self._error is not None:
            raise self._error
        return halt

    def halt(self, halt: _Halt) -> None:
        """Called by the run itself: waits until it is to go on. Once for each unit."""
        self._leave_if_stopped()
        if halt.unit in self._seen:
            return
        self._seen.add(halt.unit)
        self._halt = halt
        self._back.release()
        del halt
        self._go.acquire()
        self._leave_if_stopped()

    def _leave_if_stopped(self) -> None:
        if self._stopping:
            self._leaving = True
            raise _Stopped

    def stop(self) -> None:
        """Has the thread leave the model, wherever the two stand: `advance` may have been left."""
        self._stopping = True
        if self._go.locked():
            self._go.release()

    def join(self) -> None:
        """Waits for the end of a thread that is told to stop."""
        if self._thread.is_alive():
            self._thread.join()

    def _body(self) -> None:
        type(self)._local.run = self
        self._go.acquire()
        try:
            with torch.no_grad(), _Outside(self):
                if not self._stopping:
                    self._model(*self._call.args, **self._call.kwargs)
        except _Stopped:
            pass
        except BaseException as error:  # Raised again where the caller waits.
            self._error = error
        finally:
            self._done = True
            if not self._stopping:  # Else nobody waits.
                self._back.release()


class _Outside(TorchFunctionMode):
    """Every function of torch that a run calls runs in the one thread that advances all runs.

    glibc and torch's convolutions keep memory for each thread: MobileNetV2 on 32 images of 224 px
    had 900 MiB of which 100 were tensors.
    """

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # Of shape and the like.
            return func(*args)
        return self._run.outside(lambda: func(*args, **(kwargs or {})))


def _columns(halts: list[_Halt]) -> tuple[list[Tensor], list[Tensor]]:
    return [halt.inputs for halt in halts], [halt.outputs for halt in halts]


def _layers(unit: str | Block) -> tuple[str, ...]:
    return unit.layers if isinstance(unit, Block) else (unit,)


def _shapes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shapes(v) for name, v in value.items()}
    return value.shape if isinstance(value, Tensor) else None


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return {k: _clone(v) for k, v in value.items()} if isinstance(value, dict) else value
