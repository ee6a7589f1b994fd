"""What a model consists of: its sites (layers) and its flows (captured forwards).

With an example, modules are exported by torch.export, the root first, children where that fails.
What cannot be exported but traced by torch.fx is traced; so is everything for training, and where
there is no example. A flow is kept only if it agrees with its module (`octavo.graph.agreement`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.data import Example
from octavo.graph.agreement import agreed, same_bits
from octavo.graph.exported import Form, exported, is_one_step
from octavo.graph.flow import Flow, Step, walk
from octavo.graph.form import form_of
from octavo.graph.kinds import recognise
from octavo.graph.operator_kinds import other_numbers, recognise_operators
from octavo.graph.reads import Reads, recorded, tensors_read
from octavo.graph.trace import Untraceable, bind, is_leaf, trace, training_steps
from octavo.interrupts import check, let_through
from octavo.nn.decomposed.decompose import BORDERS
from octavo.nn.hooks import any_global
from octavo.nn.kept_state import state_kept
from octavo.nn.registry import float_reasons, looks_up, quantized_class
from octavo.nn.surgery import copy_model

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
        read_elsewhere: qualified names of parameters and buffers that not only their owner's
            forward reads: nobody may write into them or replace them.
    """

    sites: tuple[Site, ...]
    flows: tuple[Flow, ...] = ()
    untraced: Mapping[str, str] = field(default_factory=dict)
    read_elsewhere: frozenset[str] = frozenset()

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

    Each submodule is captured, the root first, its children only if that fails; layers of torch.nn
    are single steps.

    Args:
        model: any module.
        example: ``(args, kwargs)`` of one call, or a callable that is given the model and runs it
            once. Without one, flows hold no shapes and only their layers have integer kinds.
        training: keep only flows that hold in training mode too (`Flow.training`); ``model`` is
            then a copy that nobody else uses, since tracing switches its mode. Needs an example.
    """
    names = {id(module): name for name, module in model.named_modules()}
    hooked = frozenset(id(module) for module in model.modules() if _is_hooked(module))
    found = _Findings(names, training, hooked)
    if example is None:
        _trace_down(model, "", found)
    else:
        with torch.no_grad():
            while _watch_once(model, example, found):
                pass
        if "" not in found.flows and "" not in found.seen:
            _see_reads(model, example, found)
    calls = None if example is None else found.calls
    flows = tuple(found.flows.values())
    elsewhere = frozenset((*found.elsewhere, *tensors_read(model, flows)))
    neutral = set(_without_effect(model, flows))
    sites = tuple(site for site in _sites(model, calls) if site.name not in neutral)
    return Capture(sites, flows, found.untraced, elsewhere)


def _without_effect(model: nn.Module, flows: tuple[Flow, ...]) -> Iterator[str]:
    """Modules whose parameters only stand in normalisations that have become the identity."""
    for flow in flows:
        for step in flow.steps:
            read = [part.args[0] for part in step.fused if part.function == "get_attr"]
            if step.kind == "identity" and read:
                owner = read[0].rpartition(".")[0]
                own = model.get_submodule(owner)._parameters
                names = {f"{owner}.{k}".lstrip(".") for k, p in own.items() if p is not None}
                if names <= set(read):
                    yield owner


def _see_reads(model: nn.Module, example: Example, found: _Findings) -> None:
    """Finds which tensors are read by others than their owners, where the root is no flow."""
    try:
        private = _Private(model, "", found)
        with recorded(private.base, private.names_of(private.base)) as reads:
            _run_example(private.base, example)
    except MemoryError:
        raise
    except Exception:  # The model cannot be copied, or its copy not run: nothing is known.
        return
    found.elsewhere |= reads.elsewhere


@dataclass
class _Findings:
    """What capturing has found so far; what is not listed is as in `Capture` and `capture`.

    Attributes:
        names: id of each module to its qualified name.
        hooked: ids of modules that have forward hooks of the user's.
        elsewhere: as ``read_elsewhere``.
        seen: modules of which all reads have been seen.
        kinds: what was captured of modules that do the same, or why nothing was.
    """

    names: dict[int, str]
    training: bool = False
    hooked: frozenset[int] = frozenset()
    flows: dict[str, Flow] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    kinds: dict[Any, _Known | str] = field(default_factory=dict)


def _run_example(model: nn.Module, example: Example) -> None:
    with state_kept(model):
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
                if found.training:
                    watch.pending[path] = _attempt(model, path, found, args, kwargs)
                else:
                    flows[path] = _captured(model, path, found, args, kwargs)
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
            if same_bits(result, output):
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


def _form(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Form:
    """How a module is called; Untraceable for calls that a flow cannot take."""
    try:
        tensors, constants = bind(module.forward, args, kwargs)
    except (TypeError, ValueError):
        raise Untraceable("its call does not fit its signature") from None
    given = {name: x for name, x in tensors.items() if x is not None}
    if not given:
        raise Untraceable("it takes no tensor")
    return Form.of(given, constants)


# ---- for inference -------------------------------------------------------------------------------


def _captured(
    model: nn.Module, path: str, found: _Findings, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Flow:
    """The flow of one module for calls like this one; Untraceable if there is none."""
    module = model.get_submodule(path)
    form = _form(module, args, kwargs)
    private = _Private(model, path, found)
    kind = _kind(module, form)
    known = found.kinds.get(kind)
    if isinstance(known, str) and path:
        raise Untraceable(known)
    if known is not None and not isinstance(known, str):
        with contextlib.suppress(Untraceable):
            return _moved(known, path, private)
    try:
        flow, few, numbers = _of_its_own(model, path, form, private, found)
    except Untraceable as why:
        found.kinds[kind] = str(why)
        raise
    found.kinds[kind] = flow, few, numbers
    return flow


_Known = tuple[Flow, Form, Mapping[str, int] | None]
"""A flow, the call that it was captured with, and other numbers for its symbols."""


def _kind(module: nn.Module, form: Form) -> Any:
    """What modules that do the same have in common: classes, shapes and the call."""
    tensors = tuple(
        (name, tuple(x.shape), x.dtype)
        for name, x in (*module.named_parameters(), *module.named_buffers())
    )
    given = tuple((name, tuple(x.shape), x.dtype) for name, x in form.tensors.items())
    constants = tuple((name, type(c), c) for name, c in form.constants.items())
    classes = tuple((name, type(child)) for name, child in module.named_modules())
    return classes, tensors, given, constants, tuple(form.same.items())


def _moved(known: _Known, path: str, private: _Private) -> Flow:
    """A flow of a module of the same kind, at another path; Untraceable if it is another one."""
    flow, form, numbers = known
    if any(step.kind == "identity" and step.fused for step in flow.steps):
        raise Untraceable("a step of it is one only with the numbers of another module")
    if not private.runs(form):
        raise Untraceable("its call fails")
    private.refuse_hooks()
    return private.known(agreed(_at(flow, path), form, private.copy, numbers))


def _at(flow: Flow, path: str) -> Flow:
    """The flow of a module at another path."""
    old = flow.path

    def name(inside: str) -> str:
        rest = inside.removeprefix(old).removeprefix(".") if old else inside
        return f"{path}.{rest}" if path and rest else path or rest

    def step(found: Step) -> Step:
        args = (name(found.args[0]),) if found.function == "get_attr" else found.args
        module = name(found.module) if found.module else ""
        return replace(found, module=module, args=args, fused=tuple(map(step, found.fused)))

    writes = tuple(
        (kind, name(target) if kind == "buffer" else target, value)
        for kind, target, value in flow.writes
    )
    return replace(flow, path=path, steps=tuple(map(step, flow.steps)), writes=writes)


def _of_its_own(
    model: nn.Module, path: str, form: Form, private: _Private, found: _Findings
) -> _Known:
    forms = [few for few in _of_two_samples(form) if private.runs(few)] or [form]
    reasons = []
    for few in forms:
        for all_sizes in (True, False):
            check()
            try:
                private.refuse_hooks()
                flow, numbers = _exported(model, path, few, private, all_sizes)
                return flow, few, numbers
            except Untraceable as why:
                reasons.append(str(why))
    try:
        return _traced(model, path, forms[0], private, found), forms[0], None
    except Untraceable as why:
        reasons.append(str(why))
    raise Untraceable("; ".join(dict.fromkeys(reasons)))


class _Private:
    """Copies of one module that nobody else uses, without hooks, which share its parameters."""

    def __init__(self, model: nn.Module, path: str, found: _Findings) -> None:
        self.module, self.path, self.found = model.get_submodule(path), path, found
        self.reads = Reads()
        self.names = list(_names_inside(self.module, path, found.names))
        try:
            self.base = self._copy(self.module)
        except TypeError as error:
            raise Untraceable(f"it cannot be copied ({error})") from None

    @staticmethod
    def _copy(module: nn.Module) -> nn.Module:
        with torch.inference_mode(False):
            copied = copy_model(module, shared=module.parameters())
        for child in copied.modules():
            if not isinstance(child, torch.jit.ScriptModule):
                for name, table in vars(child).items():
                    if "hooks" in name and isinstance(table, dict):
                        vars(child)[name] = type(table)()
        return copied

    def copy(self) -> nn.Module:
        """Another one, in the state after one call."""
        return self._copy(self.base)

    def names_of(self, copied: nn.Module) -> dict[int, str]:
        """Id of each module of a copy to the qualified name from the root model."""
        return {id(m): name for m, name in zip(copied.modules(), self.names, strict=True)}

    def runs(self, form: Form) -> bool:
        """Whether the module takes such a call. What it makes in its first call is there then."""

        def attributes() -> list[int]:
            return [len(vars(module)) for module in self.base.modules()]

        def run() -> Reads:
            tensors = {name: x.clone() for name, x in form.tensors.items()}
            with recorded(self.base, self.names_of(self.base)) as reads, torch.no_grad():
                let_through(form.call, self.base, tensors)
            return reads

        try:
            before = attributes()
            reads = run()
            if attributes() != before:  # What it has made now is read by the next calls.
                reads = run()
        except MemoryError:
            raise
        except Exception:  # The user's forward, for arguments that are not the user's.
            return False
        self.reads = reads
        self.found.elsewhere |= reads.elsewhere
        self.found.seen.add(self.path)
        return True

    def known(self, flow: Flow, training: bool = False) -> Flow:
        """The flow with what its module is and reads."""
        reads = self.reads.plain()
        if training:  # There layers are called, and what depends on the mode is a call of its own.
            called = {n for m, n in zip(self.module.modules(), self.names, strict=True)
                      if is_one_step(m)}  # fmt: skip
            reads = tuple(e for e in reads if e[0][-1] != "training" and e[0][0] not in called)
        return replace(flow, form=form_of(self.module), reads=reads)

    def refuse_hooks(self) -> None:
        """Untraceable where hooks or another forward are inside: export would not see them."""
        if any_global():
            raise Untraceable("a hook on all modules is there")
        for module in self.module.modules():
            if "forward" in vars(module):
                raise Untraceable("a forward in it is replaced on the instance")
            if isinstance(module, BORDERS):
                raise Untraceable(f"it calls a {type(module).__bases__[-1].__name__} step by step")
        self.refuse_hooked_parts()

    def refuse_hooked_parts(self) -> None:
        """Untraceable where a module that is no step has a hook: no flow has a place for it."""
        for module in self.module.modules():
            inside = module is not self.module and not is_one_step(module)
            if inside and id(module) in self.found.hooked:
                raise Untraceable("a module in it has a hook")


def _names_inside(module: nn.Module, path: str, names: Mapping[int, str]) -> Iterator[str]:
    """Names from the root model by which modules are found inside ``module``.

    A module that is shared has its first name, and where that is outside another one.
    """
    prefix = f"{path}." if path else ""
    for inside, child in module.named_modules():
        first = names[id(child)]
        yield first if first == path or first.startswith(prefix) else f"{prefix}{inside}"


def _of_two_samples(form: Form) -> list[Form]:
    """The call with two samples, which torch.export lets be any number; the call as it is."""
    samples = form.samples
    if samples == 2:
        return [form]
    index = torch.arange(2) % samples if samples else torch.zeros(0, dtype=torch.long)
    tensors = {
        name: x.index_select(0, index) if x.dim() and x.shape[0] == samples else x
        for name, x in form.tensors.items()
        if name not in form.same
    }
    given = {name: tensors[form.same.get(name, name)] for name in form.tensors}
    return [Form.of(given, form.constants), form]


def _exported(
    model: nn.Module, path: str, form: Form, private: _Private, all_sizes: bool
) -> tuple[Flow, Mapping[str, int] | None]:
    copied = private.copy()
    raw = exported(copied, path, form, private.names_of(copied), all_sizes)
    first = next(iter(raw.flow.sizes.values()))[:1]
    if form.samples > 1 and first and isinstance(first[0], int):
        raise Untraceable(f"it is made for {first[0]} samples")
    flow = recognise_operators(raw, model)
    others = other_numbers(flow, raw.numbers) if all_sizes and len(raw.numbers) > 1 else None
    return private.known(agreed(flow, form, private.copy, others)), others


def _traced(model: nn.Module, path: str, form: Form, private: _Private, found: _Findings) -> Flow:
    private.refuse_hooked_parts()
    flow = trace(model, path, list(form.tensors), form.constants, found.names)
    flow, _ = _recognised(flow, model, form)
    return private.known(agreed(flow, form, private.copy, None))


# ---- for training --------------------------------------------------------------------------------


def _attempt(
    model: nn.Module,
    path: str,
    found: _Findings,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Flow, Any]:
    """The flow of one module and what it returns for these inputs; Untraceable if there is none."""
    form = _form(model.get_submodule(path), args, kwargs)
    flow = trace(model, path, list(form.tensors), form.constants, found.names, both_modes=True)
    flow = replace(flow, training=training_steps(model, flow, found.names))
    flow, result = _recognised(flow, model, form)
    private = _Private(model, path, found)
    if not private.runs(form):
        raise Untraceable("its call fails")
    return private.known(agreed(flow, form, private.copy, None), training=True), result


def _recognised(flow: Flow, model: nn.Module, form: Form) -> tuple[Flow, Any]:
    """A traced flow with integer kinds, and what it returns on the example."""
    values: dict[str, Any] = {}

    def observe(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            values[name] = value.shape if value.is_floating_point() else None
        elif isinstance(value, (bool, int, float, tuple, list)):
            values[name] = tuple(value) if isinstance(value, torch.Size) else value

    copies = [value.clone() for value in form.tensors.values()]
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


def _is_hooked(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule) and bool(
        module._forward_hooks or module._forward_pre_hooks
    )


def _detached(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, (tuple, list)) and type(result) in (tuple, list):
        return type(result)(_detached(item) for item in result)
    if isinstance(result, dict):
        return {key: _detached(item) for key, item in result.items()}
    return result


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
