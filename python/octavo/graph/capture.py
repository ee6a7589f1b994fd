"""What a model consists of: its sites (layers) and, where tracing succeeds, its flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.data import Example
from octavo.graph.flow import Flow, walk
from octavo.graph.kinds import recognise
from octavo.graph.trace import Untraceable, bind, is_leaf, trace, training_steps
from octavo.interrupts import check, let_through
from octavo.nn.registry import float_reasons, looks_up, quantized_class

__all__ = ["Capture", "Site", "capture"]


@dataclass(frozen=True)
class Site:
    """A module that owns parameters.

    Attributes:
        reason: "" if an integer class exists for it, else why it stays float.
        calls: how often the example called it; None without an example.
        features: inputs of a row of its weight, for layers without a kernel; they can have groups.
        looks_up: whether it reads rows of its weight by their numbers: it has no activations.
        aliases: other names of the same module.
        tied: other sites whose weight is the same Parameter.
    """

    name: str
    type: str
    reason: str = ""
    calls: int | None = None
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    features: int = 0
    looks_up: bool = False


@dataclass(frozen=True)
class Capture:
    """What was captured of a model.

    Attributes:
        sites: in call order as far as an example shows it, then in the order of registration.
        flows: captured modules; none lies inside another.
        untraced: module path to the reason why its forward is no flow.
    """

    sites: tuple[Site, ...]
    flows: tuple[Flow, ...] = ()
    untraced: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["sites"]
        for site in self.sites:
            notes = [site.reason] if site.reason else []
            if site.calls == 0:
                notes.append("not called by the example")
            if site.calls is not None and site.calls > 1:
                notes.append(f"called {site.calls} times")
            if site.tied:
                notes.append(f"weight tied to {', '.join(site.tied)}")
            lines.append(f"  {site.name or '(root)'}  {site.type}  {'; '.join(notes)}".rstrip())
        lines += [str(flow) for flow in self.flows]
        lines += [f"not a flow: {path or '(root)'}: {why}" for path, why in self.untraced.items()]
        return "\n".join(lines)


def capture(model: nn.Module, example: Example = None, training: bool = False) -> Capture:
    """The sites and flows of ``model``, which must be in eval mode and stays as it was.

    Each submodule is traced, the root first, its children only if that fails; layers of torch.nn
    are single steps. With an example a flow is kept only if, run on the same inputs that its module
    gets, it returns what the module returns, bit for bit.

    Args:
        model: any module.
        example: ``(args, kwargs)`` of one call, or a callable that is given the model and runs it
            once. Without one, flows hold no shapes and only their layers have integer kinds.
        training: keep only flows that hold in training mode too (`Flow.training`); ``model`` is
            then a copy that nobody else uses, since tracing switches its mode. Needs an example.
    """
    found = _Findings({id(module): name for name, module in model.named_modules()}, training)
    if example is None:
        _trace_down(model, "", found)
    else:
        with torch.no_grad():
            while _watch_once(model, example, found):
                pass
    calls = None if example is None else found.calls
    return Capture(_sites(model, calls), tuple(found.flows.values()), found.untraced)


@dataclass
class _Findings:
    """What capturing has found so far; what is not listed is as in `Capture` and `capture`.

    Attributes:
        names: id of each module to its qualified name.
    """

    names: dict[int, str]
    training: bool = False
    flows: dict[str, Flow] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def _run_example(model: nn.Module, example: Example) -> None:
    if callable(example):
        let_through(example, model)
    elif example is not None:
        args, kwargs = example
        let_through(model, *args, **kwargs)


def _trace_down(model: nn.Module, path: str, found: _Findings) -> None:
    check()
    module = model.get_submodule(path)
    if is_leaf(module) or found.names[id(module)] != path:
        return
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        try:
            tensors, constants = bind(module.forward, None, {})
            flow = trace(model, path, list(tensors), constants, found.names)
            found.flows[path] = recognise(flow, model, {})
            return
        except Untraceable as why:
            found.untraced[path] = str(why)
    for name, _ in module.named_children():
        _trace_down(model, f"{path}.{name}" if path else name, found)


@dataclass
class _Watch:
    """State of one run of the example."""

    inside: list[str] = field(default_factory=list)  # the flow whose module runs now
    pending: dict[str, tuple[Flow, Any]] = field(default_factory=dict)
    idle: bool = False  # while a flow is tried out
    failed: bool = False


def _watch_once(model: nn.Module, example: Example, found: _Findings) -> bool:
    """Run the example with flows for all outermost modules not decided; True if one failed late."""
    watch = _Watch()
    names, flows, untraced, calls = found.names, found.flows, found.untraced, found.calls
    calls.clear()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = names[id(module)]
        if watch.idle:
            return
        calls[path] = calls.get(path, 0) + 1
        if is_leaf(module) or watch.inside:
            return
        if path in untraced:
            return
        if path not in flows:
            watch.idle = True
            try:
                watch.pending[path] = _attempt(model, path, found, args, kwargs)
            except Untraceable as why:
                untraced[path] = str(why)
                return
            finally:
                watch.idle = False
        watch.inside.append(path)

    def leave(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        del args, kwargs
        path = names[id(module)]
        if watch.idle or is_leaf(module) or not watch.inside or watch.inside[-1] != path:
            return
        watch.inside.pop()
        if path in watch.pending:
            flow, result = watch.pending.pop(path)
            if _same(result, output):
                flows[path] = flow
            else:
                untraced[path] = "its traced form computes something else on the example"
                watch.failed = True

    with _hooked(model, enter, leave):
        _run_example(model, example)
    return watch.failed


@contextmanager
def _hooked(
    model: nn.Module, enter: Callable[..., None], leave: Callable[..., None]
) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attempt(
    model: nn.Module,
    path: str,
    found: _Findings,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Flow, Any]:
    """The flow of one module and what it returns for these inputs; Untraceable if there is none."""
    module = model.get_submodule(path)
    try:
        tensors, constants = bind(module.forward, args, kwargs)
    except (TypeError, ValueError):
        raise Untraceable("its call does not fit its signature") from None
    if not tensors:
        raise Untraceable("it takes no tensor")
    flow = trace(model, path, list(tensors), constants, found.names, both_modes=found.training)
    if found.training:
        flow = replace(flow, training=training_steps(model, flow, found.names))
    values: dict[str, Any] = {}

    def observe(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            values[name] = value.shape if value.is_floating_point() else None
        elif isinstance(value, (bool, int, float, tuple, list)):
            values[name] = tuple(value) if isinstance(value, torch.Size) else value

    copies = [value.clone() for value in tensors.values() if value is not None]
    try:
        result = walk(flow, model, tuple(copies), observe)
        flow = recognise(flow, model, values)
    except MemoryError:
        raise
    except Exception as error:  # Functions of torch on whatever the trace recorded.
        raise Untraceable(
            f"its traced form fails ({type(error).__name__}: {str(error)[:120]})"
        ) from None
    return flow, _detached(result)


def _detached(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, (tuple, list)) and type(result) in (tuple, list):
        return type(result)(_detached(item) for item in result)
    if isinstance(result, dict):
        return {key: _detached(item) for key, item in result.items()}
    return result


def _same(a: Any, b: Any) -> bool:
    """Equal types, structure and bits (NaN equals NaN)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same_form = a.dtype == b.dtype and a.shape == b.shape
        return same_form and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _features(module: nn.Module) -> int:
    quantized, _ = quantized_class(module)
    shape = quantized.canonical_weight(module).shape if quantized else ()
    return shape[1] if len(shape) == 2 else 0


def _sites(model: nn.Module, calls: Mapping[str, int] | None) -> tuple[Site, ...]:
    aliases: dict[int, list[str]] = {}
    weights: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(name)
    reasons = float_reasons(model)
    modules = dict(model.named_modules())
    for name in reasons:
        weight = dict(modules[name].named_parameters(recurse=False)).get("weight")
        if weight is not None:
            weights.setdefault(id(weight), []).append(name)
    sites = []
    for name, reason in reasons.items():
        module = modules[name]
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        tied = [other for other in weights.get(id(weight), []) if other != name]
        sites.append(
            Site(
                name,
                type(module).__name__,
                reason,
                None if calls is None else calls.get(name, 0),
                tuple(alias for alias in aliases[id(module)] if alias != name),
                tuple(tied),
                _features(module),
                looks_up(module),
            )
        )
    if calls is not None:
        order = {name: position for position, name in enumerate(calls)}
        sites.sort(key=lambda site: order.get(site.name, len(order)))
    return tuple(sites)
