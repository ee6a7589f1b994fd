"""The captured forward of a trainee: the float one, step by step, with fake-quantizers.

They stand at the values that the integer model stores. A call that does not fit what was captured
runs the class's own forward, where each layer quantizes its own input.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from octavo.graph.flow import Flow, Step, evaluate, refs, substitute
from octavo.graph.replay import call_tensors
from octavo.nn.forwards import replacement
from octavo.nn.hooks import is_watched
from octavo.nn.trained_layer import GONE, OwnedForward, trained_layer
from octavo.runtime.structure import Structure

__all__ = ["Compute", "Store", "TrainedForward", "trained_forward"]


@dataclass(frozen=True)
class Compute:
    """One float call.

    Attributes:
        step: the call in evaluation mode.
        training: in training mode, where that differs.
        is_layer: whether its module is a layer whose input has been fake-quantized before.
    """

    step: Step
    training: Step | None = None
    is_layer: bool = False


@dataclass(frozen=True)
class Store:
    """A value that the integer model stores.

    Attributes:
        value: what is fake-quantized.
        result: the name of what comes out.
        root: that of the value in the plan, which stands behind a dropout.
        layer, key: the fake-quantizer is ``layer.value_quantizers[key]``.
        relu: the call of a ReLU from ``value`` that the fake-quantizer includes.
    """

    value: str
    result: str
    root: str
    layer: str
    key: str
    relu: Step | None = None


def trained_forward(module: nn.Module) -> TrainedForward | None:
    """The captured forward of a trainee's module, None if there is none."""
    forward = replacement(module)
    return forward if isinstance(forward, TrainedForward) else None


class TrainedForward(OwnedForward):
    """The forward of a captured module in a trainee.

    Args:
        owner: the module.
        flow: what was captured.
        actions: float calls and stores, in execution order.
    """

    def __init__(self, owner: nn.Module, flow: Flow, actions: tuple[Compute | Store, ...]) -> None:
        super().__init__(owner)
        self.flow, self.actions = flow, actions
        self._bound: _Bound | None = None
        self._known: dict[tuple[str, ...], Any] = {}

    def prepare(self) -> None:
        """Finds the modules now rather than in the first call."""
        self._bound = self._bind()

    def _bind(self) -> _Bound:
        return _Bound(self.owner(), self.flow, self.actions, self._known)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's own forward would be called with, and return."""
        owner = self.owner()
        tensors = call_tensors(self.flow, self.__signature__, args, kwargs)
        bound = self._bound
        if bound is None or not (torch.compiler.is_compiling() or bound.structure.is_same(owner)):
            bound = self._bound = self._bind()
        if tensors is None or not bound.structure.fits or any(bound.container_hooks):
            return type(owner).forward(owner, *args, **kwargs)
        values = dict(zip(self.flow.parameters, tensors, strict=True))
        bound.run(values, owner.training)
        return substitute(self.flow.output, lambda ref: values[ref.name])

    def values(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        """The result, and every value by its name; None if the call was not captured."""
        tensors = call_tensors(self.flow, self.__signature__, args, kwargs)
        if tensors is None:
            return None
        bound = self._bind()
        if not bound.structure.fits:
            return None
        values = dict(zip(self.flow.parameters, tensors, strict=True))
        kept = dict(values)
        bound.run(values, self.owner().training, kept)
        return substitute(self.flow.output, lambda ref: values[ref.name]), kept

    # ---- copies: made while the owner is not complete, so modules are found in the first call

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedForward:
        owner = self.owner()
        return TrainedForward(memo.get(id(owner), owner), self.flow, self.actions)

    def __getstate__(self) -> dict[str, Any]:
        return {"owner": self.owner(), "flow": self.flow, "actions": self.actions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.flow, self.actions = state["flow"], state["actions"]
        self._attach(state["owner"])
        self._bound, self._known = None, {}

    def __repr__(self) -> str:
        stores = sum(isinstance(action, Store) for action in self.actions)
        return f"TrainedForward(path={self.flow.path!r}, stored values={stores})"


_Run = Callable[[dict[str, Any], bool], None]


class _Bound:
    """Actions with the modules of one owner."""

    def __init__(
        self,
        owner: nn.Module,
        flow: Flow,
        actions: tuple[Compute | Store, ...],
        known: dict[tuple[str, ...], Any],
    ) -> None:
        self.structure = Structure(owner, owner._modules, flow, known)
        self.container_hooks: tuple[dict[int, Any], ...] = ()
        if not self.structure.fits:
            return  # The class's own forward runs.
        self._prefix = f"{flow.path}." if flow.path else ""
        self._owner = weakref.ref(owner)
        containers: dict[int, nn.Module] = {}
        called = [step for action in actions for step in _calls(action)]
        modules: dict[str, nn.Module] = {}
        for name in dict.fromkeys(step.module for step in called):
            if not name or name == flow.path:
                continue
            module = owner
            parts = name.removeprefix(self._prefix).split(".")
            for depth, part in enumerate(parts):
                child = module._modules.get(part)
                if child is None:
                    raise AttributeError(f"module {name!r}: expected it in the model, got none.")
                module = child
                if depth + 1 < len(parts):
                    containers[id(module)] = module
            modules[name] = module
        self._modules = modules
        layers = [a.step.module for a in actions if isinstance(a, Compute) and a.is_layer]
        if any(trained_layer(modules[name]) is None for name in layers):
            self.structure.fits = False  # Another layer has taken its place.
            return
        # Modules whose calls are no steps: where one has a hook, the class's own forward calls it.
        self.container_hooks = tuple(
            table
            for module in containers.values()
            for table in (module._forward_hooks, module._forward_pre_hooks)
        )
        stored = {action.result for action in actions if isinstance(action, Store)}
        self._runs = [
            (self._store(action) if isinstance(action, Store) else self._compute(action, stored))
            for action in actions
        ]
        self._results = [
            action.result if isinstance(action, Store) else action.step.output for action in actions
        ]
        self._dead = _last_reads(flow, actions)

    def module_of(self, name: str) -> nn.Module:
        """The module of a qualified name (from the root model)."""
        found = self._modules.get(name)
        if found is None:
            owner = self._owner()
            if owner is None:
                raise RuntimeError(GONE)
            inside = name.startswith(self._prefix) and name != self._prefix[:-1]
            found = owner.get_submodule(name.removeprefix(self._prefix)) if inside else owner
        return found

    def run(
        self, values: dict[str, Any], training: bool, kept: dict[str, Any] | None = None
    ) -> None:
        """Executes all actions on ``values``; ``kept`` gets all that comes out."""
        for run, result, dead in zip(self._runs, self._results, self._dead, strict=True):
            run(values, training)
            if kept is not None:
                kept[result] = values[result]
            for name in dead:
                values.pop(name, None)

    def _store(self, action: Store) -> _Run:
        quantizers = self.module_of(action.layer).value_quantizers
        assert isinstance(quantizers, nn.ModuleDict)
        quantizer = quantizers[action.key]
        value, result, relu = action.value, action.result, action.relu
        if relu is None or not relu.module:

            def store(values: dict[str, Any], training: bool) -> None:
                values[result] = quantizer(values[value])

            return store
        module, step = self.module_of(relu.module), relu

        def store_relu(values: dict[str, Any], training: bool) -> None:
            if is_watched(module):
                evaluate(step, self.module_of, values)
                values[result] = quantizer(values[step.output])
            else:
                values[result] = quantizer(values[value])

        return store_relu

    def _compute(self, action: Compute, stored: set[str]) -> _Run:
        step, other = action.step, action.training
        if step.module and not step.args and not step.kwargs:
            module = self.module_of(step.module)
            (value,), result = step.inputs, step.output
            if action.is_layer:

                def layer(values: dict[str, Any], training: bool) -> None:
                    values[result] = module(values[value], quantized=True)

                return layer
            # What works in place must not write into what others read, or autograd needs.
            copies = value in stored and bool(getattr(module, "inplace", False))

            def call(values: dict[str, Any], training: bool) -> None:
                x = values[value]
                values[result] = module(x.clone() if copies else x)

            return call

        def general(values: dict[str, Any], training: bool) -> None:
            evaluate(other if training and other is not None else step, self.module_of, values)

        return general


def _calls(action: Compute | Store) -> Iterator[Step]:
    if isinstance(action, Compute):
        yield action.step
    elif action.relu is not None:
        yield action.relu


def _reads(action: Compute | Store) -> Iterator[str]:
    if isinstance(action, Store):
        yield action.value
    for step in _calls(action):
        yield from step.inputs
        yield from refs([step.args, dict(step.kwargs)])


def _last_reads(flow: Flow, actions: tuple[Compute | Store, ...]) -> list[tuple[str, ...]]:
    """For each action the values that nothing reads after it."""
    last: dict[str, int] = {}
    for index, action in enumerate(actions):
        defined = [action.result] if isinstance(action, Store) else [action.step.output]
        defined += [step.output for step in _calls(action)]
        for name in (*_reads(action), *defined):
            last[name] = index
    for name in refs(flow.output):
        last[name] = len(actions)
    return [tuple(n for n, index in last.items() if index == i) for i in range(len(actions))]
