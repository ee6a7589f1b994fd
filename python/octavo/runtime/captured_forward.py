"""The runtime of a captured module: its forward as a list of integer regions and float steps.

The callable stands in ``module.__dict__["forward"]``, so that class, names and children of the
module stay what they are. It runs the regions, each in one call of an operator. Where a hook sits
on a child that a region covers, the same steps run one by one instead and the hook sees floats.
Where a call does not fit what was captured (another argument structure, rank or number of
channels), the class's own forward runs over the quantized layers.
"""

from __future__ import annotations

import inspect
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from octavo import ops
from octavo.graph.flow import (
    Flow,
    Step,
    bound,
    evaluate,
    kept_values,
    numbers_of,
    refs,
    substitute,
    typed,
    with_values,
    write_back,
)
from octavo.graph.keys import wide
from octavo.graph.replay import call_tensors
from octavo.graph.sizes import is_symbol
from octavo.nn.forwards import replacement
from octavo.nn.layer import QLayer
from octavo.ops.region_program import Program, parse
from octavo.runtime.structure import Structure

__all__ = ["CapturedForward", "Region", "captured_forward"]

_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
_GONE = (
    "forward: expected the module that it belongs to, got one that is gone. Keep the module itself."
)
_NEW = object()
_MOST_SHAPES = 256
_GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


@dataclass(frozen=True, eq=False)
class Region:
    """A stretch of a flow that one call of ``run_region`` computes.

    Attributes:
        name: "<flow path>#<index>".
        program: its text.
        panels: for each ``panel=`` the qualified name of a layer, or a tensor of numbers.
        inputs, outputs: names of the values that enter and leave as floats, in the program's order.
        values: name of each value that the program computes or reads, to its id there.
        steps: the steps that the program stands for, in execution order.
    """

    name: str
    program: str
    panels: tuple[str | Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, int]
    steps: tuple[Step, ...]


def captured_forward(module: nn.Module) -> CapturedForward | None:
    """The runtime that stands for the forward of ``module``, None if there is none."""
    forward = replacement(module)
    return forward if isinstance(forward, CapturedForward) else None


class CapturedForward:
    """The forward of a captured module.

    Args:
        owner: the module; held weakly.
        flow: what was captured.
        items: regions and float steps, in execution order.
    """

    def __init__(self, owner: nn.Module, flow: Flow, items: tuple[Region | Step, ...]) -> None:
        self.flow = flow
        self.items = items
        self._bound: _Bound | None = None
        self._known: dict[tuple[str, ...], Any] = {}
        self._numbers: dict[tuple[Any, ...], Any] = {}
        self._attach(owner)

    def _attach(self, owner: nn.Module) -> None:
        self._owner = weakref.ref(owner)
        self.__signature__ = inspect.signature(type(owner).forward.__get__(owner))

    def prepare(self) -> None:
        """Finds the modules and forms the constants now rather than in the first call."""
        owner = self.owner()
        self._bound = self._bind(owner, owner._modules)

    def _bind(self, owner: nn.Module, children: dict[str, nn.Module | None]) -> _Bound:
        return _Bound(owner, children, self.flow, self.items, self._known)

    def tensors(self) -> Iterator[Tensor]:
        """What the regions keep in memory beside the layers' panels: tables and constants."""
        for item in self.items:
            if isinstance(item, Region):
                yield from (panel for panel in item.panels if isinstance(panel, Tensor))
        if self._bound is not None:
            yield from self._bound.constants()

    def owner(self) -> nn.Module:
        """The module whose forward this is."""
        owner = self._owner()
        if owner is None:
            raise RuntimeError(_GONE)
        return owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's own forward would be called with, and return."""
        owner = self.owner()
        tensors = call_tensors(self.flow, self.__signature__, args, kwargs)
        modules = self._bound
        if modules is None or not (
            torch.compiler.is_compiling() or modules.structure.is_same(owner)
        ):
            modules = self._bound = self._bind(owner, owner._modules)
        if tensors is not None and modules.structure.fits and not any(modules.container_hooks):
            values = self._values(tensors)
            if values is not None and modules.run(values):
                result = with_values(self.flow.output, values)
                if self.flow.writes:
                    write_back(self.flow, modules.module_of, values)
                return result
        return type(owner).forward(owner, *args, **kwargs)

    def _values(self, tensors: tuple[Tensor, ...]) -> dict[str, Any] | None:
        """`octavo.graph.flow.bound`, with what it finds for the latest shapes kept."""
        if not self.flow.sizes or torch.compiler.is_compiling():
            return bound(self.flow, tensors)
        values = typed(self.flow, tensors)
        if values is None:
            return None
        shapes = tuple([tensor.shape for tensor in tensors])
        numbers = self._numbers.get(shapes, _NEW)
        if numbers is _NEW:
            if len(self._numbers) >= _MOST_SHAPES:
                self._numbers.clear()
            numbers = self._numbers[shapes] = numbers_of(self.flow, shapes)
        return None if numbers is None else values | numbers

    # ---- copies: the owner is a module that is copied or pickled at the same time. Its children
    # are complete by then, it is not; so their table comes along, and no first call has anything
    # left to find out.

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedForward:
        owner = self.owner()
        twin = CapturedForward(memo.get(id(owner), owner), self.flow, self.items)
        children = memo.get(id(owner._modules))
        if children is not None:
            twin._bound = twin._bind(twin.owner(), children)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        owner = self.owner()
        return {
            "owner": owner,
            "children": owner._modules,
            "flow": self.flow,
            "items": self.items,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.flow, self.items = state["flow"], state["items"]
        self._known, self._numbers = {}, {}
        self._attach(state["owner"])
        self._bound = self._bind(state["owner"], state["children"])

    def __repr__(self) -> str:
        regions = sum(isinstance(item, Region) for item in self.items)
        return (
            f"CapturedForward(path={self.flow.path!r}, regions={regions}, items={len(self.items)})"
        )


class _Bound:
    """Flow and items with the modules of one owner, whose table of children is given."""

    def __init__(
        self,
        owner: nn.Module,
        children: dict[str, nn.Module | None],
        flow: Flow,
        items: tuple[Region | Step, ...],
        known: dict[tuple[str, ...], Any],
    ) -> None:
        prefix = f"{flow.path}." if flow.path else ""
        kept = [name.removeprefix(prefix) for name in _tensors_in(items, children, prefix)]
        self.structure = Structure(owner, children, flow, known, kept)
        self.container_hooks: tuple[dict[int, Any], ...] = ()
        self._items: list[_BoundRegion | Step] = []
        if not self.structure.fits:
            return  # The class's own forward runs.
        self._prefix = f"{flow.path}." if flow.path else ""
        # The owner holds this through its forward: a reference back would keep both alive.
        self._owner = weakref.ref(owner)
        self._modules: dict[str, nn.Module] = {}
        covered: dict[int, nn.Module] = {}
        containers: dict[int, nn.Module] = {}
        in_regions = {
            name for item in items if isinstance(item, Region) for name in _modules_of(item.steps)
        }
        for name in [*_modules_of(flow.steps), *in_regions]:
            if name in self._modules or name in ("", flow.path):
                continue
            found = owner
            table, path = children, name.removeprefix(self._prefix).split(".")
            for depth, part in enumerate(path):
                child = table.get(part)
                if child is None:
                    raise AttributeError(f"module {name!r}: expected it in the model, got none.")
                if depth + 1 < len(path):
                    containers[id(child)] = child
                table = child._modules
                found = child
            self._modules[name] = found
        ran = {name for item in items if isinstance(item, Step) for name in _modules_of((item,))}
        for name, child in self._modules.items():
            if name in in_regions:
                covered[id(child)] = child
            elif name not in ran:
                containers[id(child)] = child  # An identity that no step stands for.
        self.aliases = {s.output: s.inputs[0] for s in flow.steps if s.kind == "identity"}
        self._hooks = (*_GLOBAL_HOOKS, *_hook_tables(covered.values()))
        # Modules whose calls are no steps: where one has a hook, the class's own forward makes the
        # call.
        for name, child in _inner_modules(owner, children):
            if f"{self._prefix}{name}" not in self._modules:
                containers.setdefault(id(child), child)
        self.container_hooks = _hook_tables(containers.values())
        self._items = [
            _BoundRegion(item, self) if isinstance(item, Region) else item for item in items
        ]
        self._dead = _last_reads(flow, items)

    def module_of(self, name: str) -> nn.Module:
        """The module of a qualified name (from the root model)."""
        found = self._modules.get(name)
        if found is None:
            owner = self._owner()
            if owner is None:
                raise RuntimeError(_GONE)
            inside = name.startswith(self._prefix) and name != self._prefix[:-1]
            found = owner.get_submodule(name.removeprefix(self._prefix)) if inside else owner
        return found

    def constants(self) -> Iterator[Tensor]:
        """The constants of the regions that have run."""
        for item in self._items:
            if isinstance(item, _BoundRegion) and item.ready is not None:
                yield item.ready[2]

    def run(self, values: dict[str, Any]) -> bool:
        """Leaves those that are needed at the end; False if a region cannot take its input."""
        hooked = any(self._hooks)
        for item, dead in zip(self._items, self._dead, strict=True):
            if isinstance(item, Step):
                evaluate(item, self.module_of, values)
            elif not (item.run_hooked(values) if hooked else item.run(values)):
                return False
            for name in dead:
                values.pop(name, None)
        return True


class _Values(dict[str, Any]):
    """Values by name, where names of identities that no step stands for mean what they pass on."""

    def __init__(self, aliases: Mapping[str, str], known: Iterable[tuple[str, Any]]) -> None:
        super().__init__(known)
        self._aliases = aliases

    def __missing__(self, name: str) -> Any:
        return self[self._aliases[name]]


class _BoundRegion:
    """A region with its layers."""

    def __init__(self, region: Region, bound: _Bound) -> None:
        self.region = region
        self._bound = bound
        self._layers: list[QLayer] = []
        self._is_whole = True
        for panel in region.panels:
            if isinstance(panel, str):
                layer = bound.module_of(panel)
                if isinstance(layer, QLayer):
                    self._layers.append(layer)
                else:
                    self._is_whole = False  # A layer was replaced: its step runs in float.
        self._parsed: Program | None = None
        self._cuts: dict[tuple[str, bool], tuple[str, tuple[int, ...], tuple[str, ...]]] = {}
        self._isa = ""
        self.ready: tuple[list[Tensor], list[Tensor], Tensor] | None = None
        self._entries = self._entry_forms()
        if self._is_whole:
            self._panels()

    def _entry_forms(self) -> list[tuple[int, int, int]]:
        """For each input its rank (0: any), its channels' dimension and number (-1: any)."""
        program = self._program()
        forms = []
        for name in self.region.inputs:
            value = self.region.values[name]
            rank = {"image": 4, "image1d": 3, "rows": 0}[program.layout(value)]
            forms.append((rank, 1 if rank else -1, self._channels(program, value)))
        return forms

    def _channels(self, program: Program, value: int) -> int:
        for line in program.lines:
            if value in line.reads() and line.kind.is_product:
                panel = self.region.panels[int(line.keys["panel"])]
                if int(line.keys["x"]) == value and isinstance(panel, str):
                    layer = self._bound.module_of(panel)
                    if isinstance(layer, QLayer):
                        return layer.weight_shape[1] * layer.layer_groups
        return -1

    def _program(self) -> Program:
        if self._parsed is None:
            self._parsed = parse(self.region.program)
        return self._parsed

    def _panels(self) -> tuple[list[Tensor], Tensor]:
        """The panels in use, and the constants that belong to them."""
        ready = self.ready
        if torch.compiler.is_compiling() and ready is not None:
            return ready[1], ready[2]
        isa = ops.active_isa()
        if isa == self._isa:
            current = [layer.panel for layer in self._layers]
        else:
            current = [layer.current_panel() for layer in self._layers]
            self._isa = isa
            if any(layer._isa != isa for layer in self._layers):
                self._isa = ""  # Another thread was there too: the next call looks again.
        if ready is None or not all(map(operator.is_, current, ready[0])):
            own = iter(current)
            panels = [next(own) if isinstance(p, str) else p for p in self.region.panels]
            with torch.inference_mode(False), torch.no_grad():
                constants = ops.region_constants(panels, self.region.program)
            self.ready = ready = (current, panels, constants)
        return ready[1], ready[2]

    def _inputs(self, values: dict[str, Any]) -> list[Tensor] | None:
        """The region's inputs as float32; None if one does not fit."""
        inputs = []
        for name, (rank, dimension, channels) in zip(
            self.region.inputs, self._entries, strict=True
        ):
            x = values[wide(name)]
            if (
                not isinstance(x, Tensor)
                or x.dtype not in _FLOATS
                or not x.is_cpu
                or x.layout is not torch.strided
                or (rank and x.dim() != rank)
                or x.dim() == 0
                or (channels >= 0 and x.shape[dimension] != channels)
            ):
                return None
            inputs.append(x if x.dtype is torch.float32 else x.float())
        return inputs

    def run(self, values: dict[str, Any]) -> bool:
        """Computes the region in one call; False if an input does not fit."""
        if not self._is_whole:
            return self.run_hooked(values)
        inputs = self._inputs(values)
        if inputs is None:
            return False
        dtype = values[wide(self.region.inputs[0])].dtype
        panels, constants = self._panels()
        results = ops.run_region(inputs, panels, constants, self.region.program)
        for name, result in zip(self.region.outputs, results, strict=True):
            values[name] = result if dtype is torch.float32 else result.to(dtype)
        return True

    # ---- step by step ----------------------------------------------------------------------------

    def run_hooked(self, values: dict[str, Any]) -> bool:
        """Computes the region's steps one by one with floats between them, so that hooks fire.

        A value that is quantized again with the parameters it had gives the codes it had, so that
        what continues is what the one call computes.
        """
        inputs = self._inputs(values)
        if inputs is None:
            return False
        dtype = values[wide(self.region.inputs[0])].dtype
        numbers = ((name, value) for name, value in values.items() if is_symbol(name))
        known = (*zip(self.region.inputs, inputs, strict=True), *numbers)
        local = _Values(self._bound.aliases, known)
        for step in self.region.steps:
            self._run_step(step, local)
        for name in self.region.outputs:
            values[name] = local[name] if dtype is torch.float32 else local[name].to(dtype)
        return True

    def _run_step(self, step: Step, values: dict[str, Any]) -> None:
        parts = step.fused or (step,)
        changed = not self._has_layers(step)
        for part in parts:
            last = part is parts[-1]
            child = self._bound.module_of(part.module) if part.module else None

            def compute(
                *args: Any,
                part: Step = part,
                last: bool = last,
                child: nn.Module | None = child,
                changed: bool = changed,
            ) -> Any:
                if last and not changed and step.output in self.region.values:
                    return self._cut_result(step.output, values, as_float=False)
                if (
                    isinstance(child, QLayer)
                    and part.output not in self.region.values
                    and not changed
                ):
                    return self._layer_result(step, values)
                if child is not None:
                    # A child that works in place must not write into a value that others read.
                    return child.forward(*(a.clone() if isinstance(a, Tensor) else a for a in args))
                return evaluate(part, self._bound.module_of, values)

            if child is None:
                values[part.output] = compute()
            else:
                args = _arguments(part, values)
                result, same = _call_with_hooks(child, args, compute)
                values[part.output] = result
                changed = changed or not same

    def _has_layers(self, step: Step) -> bool:
        """Whether every layer of the step is still a quantized one."""
        names = {panel for panel in self.region.panels if isinstance(panel, str)}
        return all(
            isinstance(self._bound.module_of(name), QLayer)
            for name in _modules_of((step,))
            if name in names
        )

    def _cut_result(self, name: str, values: dict[str, Any], as_float: bool) -> Tensor:
        program = self._program()
        key = (name, as_float)
        if key not in self._cuts:
            ids = self.region.values
            step = next(s for s in self.region.steps if s.output == name)
            known = tuple(dict.fromkeys(n for n in step.inputs if n in ids))
            step_alone, used = program.cut(ids[name], [ids[n] for n in known], as_float)
            self._cuts[key] = (step_alone.text(), used, known)
        text, indices, known = self._cuts[key]
        panels = [self._panel(self.region.panels[i]) for i in indices]
        constants = ops.region_constants(panels, text)
        return ops.run_region([values[n] for n in known], panels, constants, text)[0]

    def _layer_result(self, step: Step, values: dict[str, Any]) -> Tensor:
        """The plain float result of the convolution or linear layer that ``step`` is built on."""
        return self._cut_result(step.output, values, as_float=True)

    def _panel(self, panel: str | Tensor) -> Tensor:
        if isinstance(panel, str):
            layer = self._bound.module_of(panel)
            if not isinstance(layer, QLayer):
                raise TypeError(
                    f"layer {panel!r}: expected a quantized layer, got {type(layer).__name__}."
                )
            return layer.current_panel()
        return panel


def _inner_modules(
    owner: nn.Module, children: dict[str, nn.Module | None]
) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside the owner, by their names in it; its own table may be incomplete."""
    for name, child in children.items():
        if child is not None and child is not owner:
            for inside, module in child.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    yield f"{name}.{inside}" if inside else name, module


def _tensors_in(
    items: tuple[Region | Step, ...], children: dict[str, nn.Module | None], prefix: str
) -> Iterator[str]:
    """Names of parameters and buffers whose numbers stand in tables and factors of regions."""
    for item in items:
        for step in item.steps if isinstance(item, Region) else ():
            for part in step.fused or (step,):
                if part.function == "get_attr":
                    yield part.args[0]
                elif part.module:
                    module = nn.Module()
                    module._modules = children
                    try:
                        found = module.get_submodule(part.module.removeprefix(prefix))
                    except AttributeError:
                        continue  # The form does not fit.
                    if not isinstance(found, (QLayer, torch.jit.ScriptModule)):
                        for table in (found._parameters, found._buffers):
                            for name, tensor in table.items():
                                if tensor is not None:
                                    yield f"{part.module}.{name}"


def _modules_of(steps: tuple[Step, ...]) -> Iterator[str]:
    for step in steps:
        if step.module:
            yield step.module
        yield from _modules_of(step.fused)


def _hook_tables(modules: Any) -> tuple[dict[int, Any], ...]:
    return tuple(
        table for module in modules for table in (module._forward_hooks, module._forward_pre_hooks)
    )


def _reads(item: Region | Step) -> Iterator[str]:
    if isinstance(item, Region):
        yield from map(wide, item.inputs)
        for step in item.steps:
            yield from _reads(step)
        return
    yield from item.inputs
    yield from refs(list(item.args))
    yield from refs([value for _, value in item.kwargs])
    for part in item.fused:
        yield from _reads(part)


def _last_reads(flow: Flow, items: tuple[Region | Step, ...]) -> list[tuple[str, ...]]:
    """For each item the values that nothing reads after it; those within regions never exist."""
    last: dict[str, int] = {}
    known = set(flow.parameters)
    for index, item in enumerate(items):
        names = item.outputs if isinstance(item, Region) else tuple(_defined(item))
        known.update(names)
        for name in (*_reads(item), *names):
            if name in known:
                last[name] = index
    for name in kept_values(flow):
        last[name] = len(items)
    return [tuple(n for n, index in last.items() if index == i) for i in range(len(items))]


def _defined(step: Step) -> Iterator[str]:
    yield step.output
    for part in step.fused:
        yield from _defined(part)


def _arguments(step: Step, values: dict[str, Any]) -> tuple[Any, ...]:
    if step.args or step.kwargs:
        return substitute(step.args, lambda ref: values[ref.name])  # type: ignore[no-any-return]
    return (values[step.inputs[0]],)


def _call_with_hooks(
    module: nn.Module, args: tuple[Any, ...], compute: Callable[..., Any]
) -> tuple[Any, bool]:
    """``compute(*args)`` between the hooks of ``module``, and whether no hook changed anything.

    What torch.nn.Module.__call__ does around forward, with another function in forward's place.
    """
    kwargs: dict[str, Any] = {}
    same = True
    before = _versions(args)
    for key, hook in (*_GLOBAL_HOOKS[1].items(), *module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)
            if changed is not None:
                args, kwargs = changed
                same = False
        else:
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
                same = False
    if not same or _versions(args) != before or kwargs:
        same = False
        result = module.forward(*args, **kwargs)
    else:
        result = compute(*args)
    before = _versions((result,))
    for key, hook in (*_GLOBAL_HOOKS[0].items(), *module._forward_hooks.items()):
        if key in module._forward_hooks_with_kwargs:
            changed = hook(module, args, kwargs, result)
        else:
            changed = hook(module, args, result)
        if changed is not None:
            result = changed
            same = False
    return result, same and _versions((result,)) == before


def _versions(values: tuple[Any, ...]) -> list[int]:
    """How often each tensor was written to in place, where that is counted."""
    if torch.compiler.is_compiling():
        return []
    return [v._version for v in values if isinstance(v, Tensor) and not v.is_inference()]
