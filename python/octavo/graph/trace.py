"""One module's forward to raw steps, by torch.fx: the first half of capture."""

from __future__ import annotations

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx, nn

from octavo.graph.flow import Flow, Ref, Step, refs, substitute
from octavo.graph.functions import is_in_place, operation, row_of
from octavo.interrupts import held_back

__all__ = ["Untraceable", "bind", "is_leaf", "returns_its_input", "trace", "training_steps"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class Untraceable(Exception):
    """A forward that is not a straight line of known calls; the text says why."""


def is_leaf(module: nn.Module) -> bool:
    """Whether capture takes the module as one step: torch's own layers and compiled modules."""
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        return isinstance(module, torch.jit.ScriptModule)
    if type(module) in _CONTAINERS or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    ):
        return False
    if "forward" in module.__dict__:
        return False
    own = next((base for base in type(module).__mro__ if "forward" in base.__dict__), nn.Module)
    return own is not nn.Module and own.__module__.startswith("torch.nn.")


def returns_its_input(module: nn.Module) -> bool:
    """Whether a user's module is the identity in evaluation mode, whatever it does in training.

    So are stochastic depth (DropPath), which drops whole samples, and layers that add noise.
    """
    if is_leaf(module) or "forward" in module.__dict__:
        return False
    own = (*module.children(), *module.parameters(), *module.buffers())
    if own or isinstance(module, torch.jit.ScriptModule):
        return False
    was_training = module.training
    module.training = False
    try:
        tensors, constants = bind(module.forward, None, {})
        flow = trace(module, "", list(tensors), constants, {})
    except (Untraceable, TypeError, ValueError):
        return False
    finally:
        module.training = was_training
    last = [*flow.parameters, *(step.output for step in flow.steps)][-1]
    return flow.output == Ref(last) and all(step.function == "identity" for step in flow.steps)


@contextmanager
def _unharmed(model: nn.Module) -> Iterator[None]:
    """Puts back every attribute of every module, and the contents of its lists, dicts and sets.

    Only what has changed is written to: a container may have rules of its own, a frozen config.
    """
    saved: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, tuple[Any, ...]]]]] = []
    for module in model.modules():
        containers = [
            (value, _content(value))
            for value in vars(module).values()
            if isinstance(value, (list, dict, set))
        ]
        saved.append((module, dict(vars(module)), containers))
    try:
        yield
    finally:
        for module, attributes, containers in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in containers:
                now = _content(container)
                if len(now) != len(content) or any(map(operator.is_not, now, content)):
                    _refill(container, content)


def _content(container: list[Any] | dict[Any, Any] | set[Any]) -> tuple[Any, ...]:
    """The items; of a dict keys and values in turn."""
    if isinstance(container, dict):
        return tuple(part for pair in dict.items(container) for part in pair)
    return tuple(container)


def _refill(container: list[Any] | dict[Any, Any] | set[Any], content: tuple[Any, ...]) -> None:
    """By the methods of Python's own classes, which no rule of another class can refuse."""
    if isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, content)
    else:
        kind = OrderedDict if isinstance(container, OrderedDict) else dict
        kind.clear(container)
        for key, value in zip(content[::2], content[1::2], strict=True):
            kind.__setitem__(container, key, value)


def bind(
    forward: Callable[..., Any], args: tuple[Any, ...] | None, kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor | None], dict[str, Any]]:
    """Splits a call's arguments into tensors and constants, by parameter name and in order.

    args None: no call is known; parameters without a default are taken for tensors (and stand as
    None), the others for their defaults.
    """
    signature = inspect.signature(forward)
    tensors: dict[str, torch.Tensor | None] = {}
    constants: dict[str, Any] = {}
    if args is None:
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is parameter.empty:
                tensors[name] = None
            else:
                constants[name] = parameter.default
        return tensors, constants
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
            if value:
                raise Untraceable(f"it takes a variable number of arguments ('{name}')")
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, (bool, int, float, str)):
            constants[name] = value
        else:
            raise Untraceable(f"its argument '{name}' is a {type(value).__name__}")
    return tensors, constants


class _Tracer(fx.Tracer):
    """Leaf modules carry their name from the root model; hooks of the others do not run.

    both_modes: whether modules that are the identity in evaluation mode only are leaves too.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        constants: Mapping[str, Any],
        tensors: list[str],
        both_modes: bool,
    ) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self._names = names
        self._constants = constants
        self._tensors = tensors
        self._both_modes = both_modes

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        del root_fn, is_module, concrete_args
        forward = self.root.forward
        parameters = inspect.signature(forward).parameters

        def call(root: nn.Module, *proxies: Any) -> Any:
            del root
            given = {**self._constants, **dict(zip(self._tensors, proxies, strict=True))}
            positional = [
                given.pop(name)
                for name, parameter in parameters.items()
                if parameter.kind is parameter.POSITIONAL_ONLY and name in given
            ]
            return forward(*positional, **given)

        return call, [
            self.root,
            *(self.create_proxy("placeholder", n, (), {}) for n in self._tensors),
        ]

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        del forward
        if not is_leaf(m) and not (self._both_modes and returns_its_input(m)):
            return m.forward(*args, **kwargs)
        if id(m) not in self._names:
            raise Untraceable(f"it calls a {type(m).__name__} that is not registered in the model")
        return self.create_proxy("call_module", self._names[id(m)], args, kwargs)


def _attribute_names(root: nn.Module, prefix: str) -> dict[str, str]:
    """Names of parameters and buffers as the tracer says them, to those from the root model."""
    start = f"{prefix}." if prefix else ""
    named = [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]
    return {name: start + name for name, _ in named}


def trace(
    model: nn.Module,
    path: str,
    tensors: list[str],
    constants: Mapping[str, Any],
    names: Mapping[int, str],
    *,
    both_modes: bool = False,
) -> Flow:
    """The forward of the module at ``path`` as raw steps: kind "float", one a call, out of place.

    names: id of each module to its qualified name from ``model``.
    both_modes: have one step where a module is the identity in evaluation mode only.
    Raises Untraceable.
    """
    module = model.get_submodule(path)
    if "forward" in vars(module):
        raise Untraceable("its forward is replaced on the instance")
    with held_back(), _unharmed(module):  # torch.fx changes nn.Module meanwhile.
        tracer = _Tracer(names, constants, tensors, both_modes)
        try:
            graph = tracer.trace(module)
        except (MemoryError, Untraceable):
            raise
        except Exception as error:  # Any code may run here, so any error may come out.
            raise Untraceable(
                f"it cannot be traced ({type(error).__name__}: {_first_line(error)})"
            ) from None
    return _convert(graph, model, path, tensors, constants)


def training_steps(
    model: nn.Module,
    flow: Flow,
    names: Mapping[int, str],
) -> dict[str, Step]:
    """The steps of a flow (as `trace` gave it) that differ in training mode, by their output.

    Only arguments that are False in evaluation mode and True in training mode may differ, which is
    what ``training=self.training`` becomes; Untraceable for any other difference.
    """
    module = model.get_submodule(flow.path)
    modes = {child: child.training for child in module.modules()}
    module.train()
    try:
        with held_back(), _no_checkpoints():
            parameters = list(flow.parameters)
            trained = trace(model, flow.path, parameters, flow.constants, names, both_modes=True)
    except Untraceable as why:
        raise Untraceable(f"in training mode {why}") from None
    finally:
        for child, mode in modes.items():
            child.training = mode
    if len(trained.steps) != len(flow.steps) or trained.output != flow.output:
        raise Untraceable("it makes other calls in training mode")
    found: dict[str, Step] = {}
    for step, other in zip(flow.steps, trained.steps, strict=True):
        if other == step:
            continue
        if replace(other, args=step.args, kwargs=step.kwargs) != step or not _differ_in_mode(
            [step.args, step.kwargs], [other.args, other.kwargs]
        ):
            raise Untraceable(f"it makes another call for '{step.output}' in training mode")
        found[step.output] = other
    return found


@contextmanager
def _no_checkpoints() -> Iterator[None]:
    """While it lasts, gradient checkpointing cannot be traced: a graph through it would undo it."""
    module = torch.utils.checkpoint
    # What runs the form that is not reentrant (the other is no graph anyway), until torch 2.13 and
    # from 2.14 on.
    names = (
        "_checkpoint_without_reentrant_generator",
        "_checkpoint_without_reentrant_generator_impl",
    )
    originals = {name: getattr(module, name) for name in names if hasattr(module, name)}

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise Untraceable("it recomputes a part in the backward pass (gradient checkpointing)")

    try:
        for name in originals:
            setattr(module, name, refuse)
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _differ_in_mode(one: Any, other: Any) -> bool:
    """Whether nested arguments are equal but for False that became True."""
    if isinstance(one, (tuple, list)) and type(one) is type(other) and len(one) == len(other):
        return all(map(_differ_in_mode, one, other))
    return bool(type(one) is type(other) and (one == other or (one is False and other is True)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]


_PLAIN = (
    type(None),
    bool,
    int,
    float,
    str,
    type(...),
    torch.dtype,
    torch.device,
    torch.memory_format,
    torch.layout,
)


def _convert(
    graph: fx.Graph,
    model: nn.Module,
    path: str,
    tensors: list[str],
    constants: Mapping[str, Any],
) -> Flow:
    attributes = _attribute_names(model.get_submodule(path), path)
    current: dict[fx.Node, str] = {}
    taken = set(tensors)
    steps: list[Step] = []
    output: Any = None

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Ref(current[value])
        if isinstance(value, tuple):
            return tuple(plain(item) for item in value)
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(plain(value.start), plain(value.stop), plain(value.step))
        if not isinstance(value, _PLAIN):
            raise Untraceable(f"it makes a {type(value).__name__} in its forward")
        return value

    for node in graph.nodes:
        if node.op == "placeholder":
            current[node] = str(node.target)
            continue
        if node.op == "output":
            output = plain(node.args[0])
            continue
        name = node.name
        while name in taken:
            name += "_"
        taken.add(name)
        args, kwargs = plain(node.args), plain(dict(node.kwargs))
        read = tuple(dict.fromkeys(refs([args, kwargs])))
        in_place = False
        if node.op == "get_attr":
            if node.target not in attributes:
                raise Untraceable("it makes a tensor in its forward")
            step = Step("float", (), name, function="get_attr", args=(attributes[node.target],))
        elif node.op == "call_module":
            called = model.get_submodule(node.target)
            in_place = bool(getattr(called, "inplace", False))
            single = len(args) == 1 and isinstance(args[0], Ref) and not kwargs
            step = Step(
                "float",
                read,
                name,
                module=node.target,
                args=() if single else args,
                kwargs=tuple(sorted(kwargs.items())),
            )
        else:
            row = row_of(node.target)
            if not row:
                called_name = getattr(node.target, "__name__", node.target)
                raise Untraceable(f"it calls '{called_name}'")
            in_place = is_in_place(node.target, kwargs)
            kwargs.pop("inplace", None)
            if row == "identity" and not isinstance(node.target, str):
                _check_stochastic_depth(args, kwargs)
                args, kwargs = args[:1], {}
            if "out" in kwargs:
                raise Untraceable("it writes a result into an argument ('out=')")
            step = Step(
                "float", read, name, function=row, args=args, kwargs=tuple(sorted(kwargs.items()))
            )
        steps.append(step)
        if in_place and node.args and isinstance(node.args[0], fx.Node):
            before = current[node.args[0]]
            for other, value in current.items():
                if value == before:
                    current[other] = name
        current[node] = name
    return prune(Flow(path, tuple(tensors), dict(constants), tuple(steps), output))


def _check_stochastic_depth(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = {**dict(zip(("input", "p", "mode", "training"), args, strict=False)), **kwargs}
    if given.get("training", True) and given.get("p") != 0.0:
        raise Untraceable("it drops at random")


def prune(flow: Flow) -> Flow:
    """Without the steps that nothing reads (checks by torch._assert stay)."""
    needed = set(refs(flow.output))
    kept: list[Step] = []
    for step in reversed(flow.steps):
        if step.output in needed or operation(step.function) == "_assert":
            kept.append(step)
            needed.update(step.inputs)
            if not step.fused:
                needed.update(refs([step.args, dict(step.kwargs)]))
    return replace(flow, steps=tuple(reversed(kept)))


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A nested argument with its references renamed."""
    return substitute(value, lambda ref: Ref(names.get(ref.name, ref.name)))
