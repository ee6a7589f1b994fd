"""One module's forward to raw steps, by torch.export: the first half of capture for inference.

torch.export runs the Python of the forward once with tensors that have sizes and no values, and
gives ATen operators with a symbol for each size that may differ. Here these become steps: calls of
torch's own layers are steps of their modules again (who owns the parameters is known), sizes become
expressions, writes into values that nobody else reads become operators that write nothing. Other
writes are resolved by torch.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import random
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from octavo.graph.flow import Flow, Ref, Step, refs
from octavo.graph.instances import Instance, taken_apart
from octavo.graph.operators import OPERATOR, functional_form, is_operator
from octavo.graph.sizes import (
    NotWhole,
    Size,
    condition_of,
    expression_of,
    is_symbol,
    symbols_of,
)
from octavo.graph.trace import Untraceable, is_leaf, prune
from octavo.interrupts import held_back
from octavo.nn.registry import quantized_class

__all__ = ["Exported", "Form", "exported", "is_one_step"]

_MOST_ELEMENTS = 4096  # Of a tensor that a forward makes out of numbers.
_MOST_SECONDS = 5.0  # With all sizes free.
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.layout, torch.memory_format)
# Operators that may return what they are given although their schema does not say so.
_PASSING = frozenset({"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"})
_NO_CALLS = frozenset(
    [
        "_assert_scalar",
        "_assert_async",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    ]
)
_lock = threading.RLock()  # torch.export swaps parameters while it runs: one at a time.


@dataclass(frozen=True)
class Form:
    """How a module was called.

    Attributes:
        tensors: arguments that are tensors, by parameter.
        constants: all others.
        same: parameters whose tensor is that of an earlier one.
    """

    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Any]
    same: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], constants: Mapping[str, Any]) -> Form:
        """With ``same`` found."""
        first: dict[int, str] = {}
        same = {}
        for name, tensor in tensors.items():
            other = first.setdefault(id(tensor), name)
            if other != name:
                same[name] = other
        return cls(dict(tensors), dict(constants), same)

    @property
    def samples(self) -> int:
        """Size of the first dimension of the first tensor that has one."""
        return next((x.shape[0] for x in self.tensors.values() if x.dim()), 1)

    def call(self, module: nn.Module, tensors: Mapping[str, Any]) -> Any:
        """Calls the module with other tensors."""
        given = {**self.constants, **tensors}
        for name, other in self.same.items():
            given[name] = given[other]
        parameters = inspect.signature(type(module).forward.__get__(module)).parameters
        positional = [
            given.pop(name)
            for name, parameter in parameters.items()
            if parameter.kind is parameter.POSITIONAL_ONLY and name in given
        ]
        return module(*positional, **given)


@dataclass(frozen=True)
class Exported:
    """Raw steps, and what is known of values: for float tensors their shapes as expressions.

    Attributes:
        numbers: of each symbol on the example.
        dtypes: of the example's tensors.
    """

    flow: Flow
    shapes: Mapping[str, tuple[Any, ...]]
    numbers: Mapping[str, int]


class _Flat(nn.Module):
    """The module as a function from tensors to tensors."""

    def __init__(self, module: nn.Module, form: Form, found: list[Any]) -> None:
        super().__init__()
        self.inner = module
        self._form, self._found = form, found

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Leaves the structure of the result in ``found``."""
        names = [name for name in self._form.tensors if name not in self._form.same]
        leaves: list[Tensor] = []
        result = self._form.call(self.inner, dict(zip(names, tensors, strict=True)))
        self._found[:] = [_apart(result, leaves)]
        return tuple(leaves)


@dataclass(frozen=True)
class _Leaf:
    index: int


def _apart(value: Any, leaves: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        leaves.append(value)
        return _Leaf(len(leaves) - 1)
    if type(value) in (tuple, list):
        return type(value)(_apart(item, leaves) for item in value)
    if type(value) is dict:
        return {key: _apart(item, leaves) for key, item in value.items()}
    if isinstance(value, torch.SymInt):
        return Size(_expression(value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    instance = taken_apart(value)
    if instance is not None:
        return Instance(instance.name, tuple((k, _apart(v, leaves)) for k, v in instance.fields))
    raise Untraceable(f"its result is a {type(value).__name__}")


def exported(
    module: nn.Module, path: str, form: Form, names: Mapping[int, str], all_sizes: bool
) -> Exported:
    """The forward of ``module`` as raw steps: kind "float", one a call, none of which writes.

    Args:
        module: a copy that nobody else uses, in evaluation mode, without hooks.
        path: its qualified name from the root model.
        form: the call. Tensors have two samples or more where the number of samples may differ.
        names: id of each of its modules to the qualified name from the root model.
        all_sizes: whether all sizes may differ but channels, and not only numbers of samples.

    Raises Untraceable.
    """
    found: list[Any] = []
    tensors = [x for name, x in form.tensors.items() if name not in form.same]
    shapes = tuple(_free(x, form.samples, all_sizes) for x in tensors)
    flat = _Flat(module, form, found)
    with _lock, _undisturbed(), _in_time(flat) if all_sizes else contextlib.nullcontext():
        try:
            program = torch.export.export(
                flat, (tuple(tensors),), dynamic_shapes=(shapes,), strict=False
            )
            in_place = _in_place(program.graph)
            if in_place is None:
                program = program.run_decompositions({})
                if _in_place(program.graph) != {}:
                    raise Untraceable("it writes in place in a way that cannot be followed")
            modules = {
                name: (child, names[id(child)])
                for name, child in module.named_modules(remove_duplicate=False)
            }
            return _Conversion(program, path, form, modules, (found[0], in_place)).result()
        except (MemoryError, Untraceable):
            raise
        except NotWhole as error:
            raise Untraceable(f"sizes in it are no whole numbers ({error})") from None
        except Exception as error:  # Any code may run here, so any error may come out.
            lines = str(error).strip().splitlines() or [""]
            raise Untraceable(
                f"it cannot be exported ({type(error).__name__}: {lines[0][:120]})"
            ) from None


def _free(x: Tensor, samples: int, all_sizes: bool) -> dict[int, Any]:
    """Dimensions whose size may differ. Channels of images are fixed."""
    fixed = {1} if x.dim() in (4, 5) else set()
    return {
        axis: torch.export.Dim.AUTO
        for axis, size in enumerate(x.shape)
        if size > 1
        and axis not in fixed
        and ((axis == 0 and size == samples) or (all_sizes and (axis > 0 or size != samples)))
    }


class _Silence(logging.Filter):
    """Nothing is said by the thread that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Torch's flags and random generators come back as they were; nothing is printed."""
    silence, handlers = _Silence(), [*logging.getLogger("torch").handlers]
    for handler in handlers:
        handler.addFilter(silence)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    generators = torch.get_rng_state(), random.getstate()
    try:
        with held_back(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_rng_state(generators[0])
        random.setstate(generators[1])
        for handler in handlers:
            handler.removeFilter(silence)


@contextlib.contextmanager
def _in_time(module: nn.Module) -> Iterator[None]:
    """Untraceable where calls of the modules come later than is worth waiting for."""
    start = time.thread_time()

    def check(*_: Any) -> None:
        if time.thread_time() - start > _MOST_SECONDS:
            raise Untraceable("it takes too long with all sizes free")

    handles = [
        child.register_forward_pre_hook(check)
        for child in module.modules()
        if not isinstance(child, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _expression(size: Any) -> Any:
    """A size of torch's as an expression; a number where it is one."""
    if isinstance(size, torch.SymInt):
        return expression_of(size.node.expr)
    return int(size)


# ---- what is written in place -------------------------------------------------------------------


def _in_place(graph: fx.Graph) -> dict[fx.Node, Any] | None:
    """Nodes that write into a value that nobody else reads, to the operators that write nothing.

    None where a node writes into anything else: a view, what views see, an argument, a buffer.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}  # whose memory it may be
    itself: dict[fx.Node, fx.Node] = {}  # which very tensor it is
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        root[node] = itself[node] = node
        if node.op != "call_function":
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            if node.args and isinstance(node.args[0], fx.Node):
                root[node] = root[node.args[0]]  # A part of a list.
            continue
        schema = node.target._schema
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if schema.is_mutable and schema.name != "aten::detach_":
            written = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
            operator = functional_form(node.target)
            if operator is None or first is None or not written[0] or any(written[1:]):
                return None
            if root[first].op == "placeholder":
                return None
            for other in list(root):
                if root[other] is root[first] and other is not node:
                    read_later = any(position[user] > position[node] for user in other.users)
                    if read_later and itself[other] is not itself[first]:
                        return None
            found[node] = operator
        aliased = [
            value
            for argument, value in zip(schema.arguments, node.args, strict=False)
            if argument.alias_info is not None and isinstance(value, fx.Node)
        ]
        if schema.is_mutable and first is not None:
            root[node], itself[node] = root[first], itself[first]
        elif aliased and any(r.alias_info is not None for r in schema.returns):
            root[node] = root[aliased[0]]
        elif first is not None and schema.name.partition("::")[2] in _PASSING:
            root[node] = root[first]
    return found


# ---- nodes to steps -----------------------------------------------------------------------------


class _Conversion:
    """Steps of one exported program.

    found: the structure of the result, and what `_in_place` says.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        path: str,
        form: Form,
        modules: Mapping[str, tuple[nn.Module, str]],
        found: tuple[Any, dict[fx.Node, Any] | None],
    ) -> None:
        structure, in_place = found
        self.program, self.path, self.form, self.structure = program, path, form, structure
        # Layers by the paths that torch.export says, and by their names from the root model.
        self.layers = {
            f"inner.{inside}".removesuffix("."): name
            for inside, (module, name) in modules.items()
            if is_one_step(module) and _takes_one(module)
        }
        self.writing = {
            name for module, name in modules.values() if getattr(module, "inplace", False)
        }
        self.in_place = in_place or {}
        self.functional = in_place is None
        self.graph = program.graph
        self.signature = program.graph_signature
        self.steps: list[Step] = []
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.current: dict[fx.Node, str] = {}
        self.tensors: dict[fx.Node, tuple[str, str]] = {}  # ("get_attr" or "constant", name)
        self.taken = set(form.tensors)
        self.conditions: list[Any] = []
        self.environment: Any = None

    def result(self) -> Exported:
        sizes = self._placeholders()
        groups = self._groups()
        output: fx.Node | None = None
        for node in self.graph.nodes:
            if node.op == "output":
                output = node
            elif node.op == "call_function":
                self._node(node, groups)
        assert output is not None
        results = list(output.args[0])  # type: ignore[arg-type]
        written = len(results) - len(self.signature.user_outputs)
        writes = self._writes(results[:written])
        names = [self._name_of(node) for node in results[written:]]
        structure = _filled(self.structure, names)
        ranges, numbers = self._symbols(sizes)
        flow = Flow(
            self.path,
            tuple(self.form.tensors),
            dict(self.form.constants),
            tuple(self.steps),
            structure,
            sizes=sizes,
            ranges=ranges,
            conditions=tuple(dict.fromkeys(self.conditions)),
            dtypes=self._dtypes(),
            same=dict(self.form.same),
            writes=writes,
        )
        return Exported(prune(flow), self.shapes, numbers)

    # ---- arguments and sizes

    def _placeholders(self) -> dict[str, tuple[Any, ...]]:
        """Says what each placeholder is; the sizes of the arguments."""
        parameters = {**self.signature.inputs_to_parameters, **self.signature.inputs_to_buffers}
        constants = dict(self.signature.inputs_to_lifted_tensor_constants)
        own = iter(name for name in self.form.tensors if name not in self.form.same)
        inputs = dict(zip(self.signature.user_inputs, own, strict=True))
        sizes: dict[str, tuple[Any, ...]] = {}
        for node in self.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in parameters:
                self.tensors[node] = ("get_attr", self._qualified(parameters[node.name]))
            elif node.name in constants:
                self.tensors[node] = ("constant", constants[node.name])
            elif node.name in inputs:
                name, value = inputs[node.name], node.meta["val"]
                self.current[node] = name
                self.environment = value.fake_mode.shape_env or self.environment
                sizes[name] = tuple(map(_expression, value.shape))
                if value.is_floating_point():
                    self.shapes[name] = sizes[name]
            else:
                raise Untraceable(f"it has an input {node.name!r} of a kind that is not known")
        for name, other in self.form.same.items():
            sizes[name] = sizes[other]
            if other in self.shapes:
                self.shapes[name] = self.shapes[other]
        return sizes

    def _qualified(self, name: str) -> str:
        """The name from the root model of a tensor of the module."""
        inside = name.removeprefix("inner").removeprefix(".")
        return f"{self.path}.{inside}" if self.path else inside

    def _symbols(
        self, sizes: Mapping[str, tuple[Any, ...]]
    ) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
        """Ranges of the symbols and their numbers on the example; finds all conditions."""
        numbers: dict[str, int] = {}
        for name, expressions in sizes.items():
            shape = self.form.tensors[name].shape
            numbers |= {e: n for e, n in zip(expressions, shape, strict=True) if isinstance(e, str)}
        for guard in [] if self.environment is None else self.environment.guards:
            self._condition(self.environment.simplify(guard.expr))
        values = [step.args for step in self.steps] + [step.kwargs for step in self.steps]
        used = {
            *(s for condition in self.conditions for s in symbols_of(condition)),
            *(s for shape in self.shapes.values() for e in shape for s in symbols_of(e)),
            *(s for e in _sizes_in([*values, self.structure]) for s in symbols_of(e)),
        }
        if not used <= set(numbers):
            raise Untraceable("sizes in it do not follow from the sizes of its arguments")
        ranges = {}
        for symbol, found in self.program.range_constraints.items():
            name = f"${symbol}"
            if name in numbers:
                upper = str(found.upper)
                ranges[name] = int(found.lower), int(upper) if upper.isdecimal() else -1
        for name in numbers:
            ranges.setdefault(name, (2, -1))
        return ranges, numbers

    def _condition(self, found: Any) -> None:
        if found is True or str(found) == "True":
            return
        if type(found).__name__ == "And":
            for part in found.args:
                self._condition(part)
            return
        self.conditions.append(condition_of(found))

    def _dtypes(self) -> dict[str, torch.dtype]:
        """Floats may be of any dtype where no step says one."""
        said = any(isinstance(leaf, torch.dtype) for step in self.steps for leaf in _leaves(step))
        return {
            name: x.dtype
            for name, x in self.form.tensors.items()
            if said or not x.is_floating_point()
        }

    # ---- calls of modules

    def _groups(self) -> dict[fx.Node, tuple[str, str, fx.Node, fx.Node]]:
        """Each node of a layer's call to: the call, the module, what it reads, what it gives."""
        members: dict[str, list[fx.Node]] = {}
        module_of: dict[str, str] = {}
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            for key, (path, *_) in (node.meta.get("nn_module_stack") or {}).items():
                if path in self.layers:
                    members.setdefault(key, []).append(node)
                    module_of[key] = self.layers[path]
                    break
        found: dict[fx.Node, tuple[str, str, fx.Node, fx.Node]] = {}
        for key, nodes in members.items():
            ends = self._ends(nodes)
            if ends is not None and not self._writes_what_others_read(module_of[key], *ends):
                found |= {node: (key, module_of[key], *ends) for node in nodes}
        return found

    def _ends(self, nodes: list[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
        """The one tensor that enters and the one that leaves."""
        inside = set(nodes)
        entering = {
            value
            for node in nodes
            for value in node.all_input_nodes
            if value not in inside and value not in self.tensors and _is_tensor(value)
        }
        leaving = [
            node
            for node in nodes
            if _is_tensor(node) and any(user not in inside for user in node.users)
        ]
        if len(entering) != 1 or len(leaving) != 1:
            return None
        return entering.pop(), leaving[0]

    def _writes_what_others_read(self, name: str, entering: fx.Node, leaving: fx.Node) -> bool:
        return name in self.writing and (self.functional or len(entering.users) > 1)

    # ---- nodes

    def _node(self, node: fx.Node, groups: Mapping[fx.Node, Any]) -> None:
        name = node.target.__name__ if callable(node.target) else str(node.target)
        base = name.partition(".")[0]
        if base in _NO_CALLS:
            if base == "_assert_scalar":
                value = node.args[0].meta["val"] if isinstance(node.args[0], fx.Node) else True
                if isinstance(value, torch.SymBool):
                    self._condition(value.node.expr)
            return
        if node in groups:
            _, module, entering, leaving = groups[node]
            if node is leaving:
                self._module_step(node, module, entering)
            return
        if not _is_tensor(node) and not _is_list(node):
            return  # Arithmetic with sizes.
        if base == "detach_":
            self.current[node] = self._name_of(node.args[0])
            return
        target = self.in_place.get(node, node.target)
        function = self._function(target)
        value = self._taken(node.name)
        args = tuple(map(self._plain, node.args))
        kwargs = {key: self._plain(item) for key, item in node.kwargs.items()}
        read = tuple(dict.fromkeys(n for n in refs([args, kwargs]) if not is_symbol(n)))
        self._add(node, Step("float", read, value, function=function, args=args,
                             kwargs=tuple(sorted(kwargs.items()))))  # fmt: skip
        if node in self.in_place:
            self._instead(node.args[0], value)

    def _function(self, target: Any) -> str:
        if getattr(target, "__name__", "") == "getitem" and not hasattr(target, "_schema"):
            return "operator.getitem"
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
            name = f"{OPERATOR}{target._schema.name.partition('::')[2]}.{target._overloadname}"
            if is_operator(name):
                return name
        raise Untraceable(f"it calls {str(target)!r}")

    def _module_step(self, node: fx.Node, module: str, entering: fx.Node) -> None:
        name = module.replace(".", "_") or "forward"
        value = self._taken(f"_{name}" if name[0].isdigit() else name)
        source = self._name_of(entering)
        self._add(node, Step("float", (source,), value, module=module))
        if module in self.writing:
            self._instead(entering, value)

    def _add(self, node: fx.Node, step: Step) -> None:
        self.steps.append(step)
        self.current[node] = step.output
        value = node.meta["val"]
        if isinstance(value, Tensor) and value.is_floating_point():
            self.shapes[step.output] = tuple(map(_expression, value.shape))

    def _instead(self, written: Any, value: str) -> None:
        """From now on the names of what was written mean another value."""
        before = self._name_of(written)
        for node, name in self.current.items():
            if name == before:
                self.current[node] = value

    def _taken(self, name: str) -> str:
        """A name that no value has yet."""
        free, number = name, 0
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free

    # ---- arguments of steps

    def _plain(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            found = value.meta.get("val")
            if isinstance(found, torch.SymInt):
                expression = _expression(found)
                return expression if isinstance(expression, int) else Size(expression)
            if isinstance(found, (torch.SymFloat, torch.SymBool)):
                raise Untraceable("it computes a number from sizes that is no whole number")
            if isinstance(found, (bool, int, float)):
                return found
            return Ref(self._name_of(value))
        if isinstance(value, (tuple, list)):
            kind = tuple if isinstance(value, tuple) else list
            return kind(map(self._plain, value))
        if isinstance(value, torch.device):
            if value.type != "cpu":
                raise Untraceable(f"it computes on {value}")
            return value
        if not isinstance(value, _PLAIN):
            raise Untraceable(f"it has a {type(value).__name__} among its arguments")
        return value

    def _name_of(self, node: Any) -> str:
        """The value of a node; reads a parameter, buffer or constant where it is one."""
        if node not in self.current:
            kind, name = self.tensors[node]
            if kind == "get_attr":
                value = self._taken(name.replace(".", "_"))
                step = Step("float", (), value, function="get_attr", args=(name,))
            else:
                value = self._taken(name.rpartition(".")[2])
                step = self._constant(value, self.program.constants[name])
            self._add(node, step)
        return self.current[node]

    def _constant(self, value: str, found: Any) -> Step:
        if not isinstance(found, Tensor) or found.numel() > _MOST_ELEMENTS:
            raise Untraceable("it holds a large tensor that is no parameter and no buffer")
        if type(found) is not Tensor or found.is_complex():
            raise Untraceable(f"it holds a {type(found).__name__}")
        elements = tuple(found.detach().flatten().tolist())
        if any(isinstance(e, float) and math.isnan(e) for e in elements):
            raise Untraceable("it makes a tensor of NaN")
        args = (elements, tuple(found.shape), found.dtype)
        return Step("float", (), value, function="constant", args=args)

    def _writes(self, results: list[Any]) -> tuple[tuple[str, str, str], ...]:
        """What the outputs that are none of the forward's own are written into."""
        buffers = self.signature.buffers_to_mutate
        arguments = getattr(self.signature, "user_inputs_to_mutate", {})
        names = {node.name: name for node, name in self.current.items() if node.op == "placeholder"}
        found = []
        for node in results:
            if node.name in buffers:
                target = ("buffer", self._qualified(buffers[node.name]))
            elif node.name in arguments:
                target = ("argument", names[arguments[node.name]])
            else:
                raise Untraceable("it writes into a parameter")
            found.append((*target, self._name_of(node)))
        return tuple(found)


def is_one_step(module: nn.Module) -> bool:
    """Whether a call of the module is one step: torch's own layers, and layers like them."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    return is_leaf(module) or quantized_class(module)[0] is not None


def _takes_one(module: nn.Module) -> bool:
    """Whether one argument is enough for a call."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    needed = [
        p for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]  # fmt: skip
    return len(needed) <= 1


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_list(node: fx.Node) -> bool:
    found = node.meta.get("val")
    return isinstance(found, (tuple, list)) and any(isinstance(item, Tensor) for item in found)


def _filled(structure: Any, names: list[str]) -> Any:
    if isinstance(structure, _Leaf):
        return Ref(names[structure.index])
    if isinstance(structure, (tuple, list)):
        return type(structure)(_filled(item, names) for item in structure)
    if isinstance(structure, dict):
        return {key: _filled(item, names) for key, item in structure.items()}
    if isinstance(structure, Instance):
        return Instance(structure.name, _filled(structure.fields, names))
    return structure


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Step):
        yield from _leaves([value.args, value.kwargs])
    elif isinstance(value, Instance):
        yield from _leaves([item for _, item in value.fields])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _sizes_in(value: Any) -> Iterator[Any]:
    return (leaf.expression for leaf in _leaves(value) if isinstance(leaf, Size))
