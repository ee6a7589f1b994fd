"""What a module's forward does, as data: the steps that capture finds and plan turns into regions.

A flow is a straight line of steps over named values. Every step can be evaluated in float (it
remembers the call it came from), and the steps whose ``kind`` is a row of the region program
(csrc/README.md) can run in integers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from octavo.errors import describe
from octavo.files.typed import made
from octavo.graph.functions import FUNCTIONS
from octavo.graph.operators import OPERATOR, operator_of
from octavo.graph.sizes import Size, holds, symbols_of, value_of
from octavo.ops.region_steps import PLANNED

__all__ = [
    "KINDS",
    "Flow",
    "Ref",
    "Step",
    "bound",
    "evaluate",
    "from_data",
    "kept_values",
    "refs",
    "run",
    "substitute",
    "to_data",
    "walk",
    "with_values",
    "write_back",
]


#: What a step can be (`Step.kind`): a region step, or what runs in float only or computes nothing.
KINDS = frozenset({*PLANNED, "float", "identity"})


@dataclass(frozen=True)
class Ref:
    """Stands for a value inside the arguments of a step."""

    name: str


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        kind: one of `KINDS`; "unary" becomes a table, or a clamp fused into its producer.
        inputs: values read, in order (for conv and linear: x, then the fused residual if any). For
            a step with ``fused`` these are the values that the fused steps read from outside.
        output: value defined.
        module: qualified name (from the root model) of the child that is called, "" for a function.
        function: an operator of ATen ("aten.add.Tensor") or a row of capture's function table, ""
            for a module.
        args, kwargs: of that call, with `Ref` in place of values and `Size` in place of numbers
            that depend on sizes; kwargs as sorted pairs. Empty for modules with one input. The
            function "get_attr" reads the parameter or buffer whose qualified name is its argument;
            "constant" makes the tensor of its arguments: elements, shape, dtype.
        params: plain JSON data that the integer step needs (stride, padding, clamp in reals, ...).
        fused: the float steps (in order) that this step stands for, when capture or plan has made
            one of several; else empty. Evaluating the step in float evaluates these.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    module: str = ""
    function: str = ""
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    fused: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Flow:
    """The captured forward of the module at ``path`` ("" is the root).

    Attributes:
        parameters: names of the forward's parameters that are tensors, in call order; each is also
            a value name.
        constants: other arguments of forward that the trace was specialised on (name to value).
        output: nested tuple / list / dict with `Ref` leaves.
        shapes: shape of each tensor value on the example (empty without one). Batch and spatial
            sizes may differ in a call; the number of dimensions and the channels may not.
        training: calls that say ``training=`` as they are in training mode, by the value they
            define. Only capture for training fills it; ``steps`` are those of evaluation mode.
        sizes: of each parameter's dimensions: a number that it must have, the name of a symbol, or
            an expression of symbols. Without an entry any size fits.
        ranges: least and largest number that a symbol may stand for (largest -1: any).
        conditions: what must hold of the symbols besides.
        dtypes: that a parameter must have.
        same: parameters that must be the very tensor of another one.
        form: names and classes of the modules inside.
        reads: attributes that the forward reads (module, attribute, maybe one of what that holds),
            whether they are plain data, and that data.
        writes: what the forward writes, when all steps have run: ("buffer", qualified name, value)
            or ("argument", parameter, value).
    """

    path: str
    parameters: tuple[str, ...]
    constants: Mapping[str, Any]
    steps: tuple[Step, ...]
    output: Any
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    training: Mapping[str, Step] = field(default_factory=dict)
    sizes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    conditions: tuple[Any, ...] = ()
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    writes: tuple[tuple[str, str, str], ...] = ()
    form: tuple[tuple[str, str], ...] = ()
    reads: tuple[tuple[tuple[str, ...], bool, Any], ...] = ()

    def __str__(self) -> str:
        lines = [f"flow {self.path or '(root)'}({', '.join(self.parameters)})"]
        for step in self.steps:
            what = (
                step.module or step.function or "+".join(s.module or s.function for s in step.fused)
            )
            lines.append(f"  {step.output} = {step.kind}({', '.join(step.inputs)})  {what}")
        return "\n".join([*lines, f"  return {substitute(self.output, lambda ref: ref.name)}"])


def substitute(value: Any, replace: Callable[[Ref], Any]) -> Any:
    """``value`` with each `Ref` inside it replaced by ``replace(ref)``; a `Size` stays."""
    if isinstance(value, Ref):
        return replace(value)
    if isinstance(value, tuple):
        return tuple(substitute(item, replace) for item in value)
    if isinstance(value, list):
        return [substitute(item, replace) for item in value]
    if isinstance(value, dict):
        return {key: substitute(item, replace) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(substitute(part, replace) for part in (value.start, value.stop, value.step)))
    return value


def with_values(value: Any, values: Mapping[str, Any]) -> Any:
    """``value`` with what each `Ref` and `Size` inside it stands for."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Size):
        return value_of(value.expression, values.__getitem__)
    if isinstance(value, (tuple, list)):
        return type(value)([with_values(item, values) for item in value])
    if isinstance(value, dict):
        return {key: with_values(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(with_values(part, values) for part in parts))
    return value


def bound(flow: Flow, tensors: Sequence[torch.Tensor]) -> dict[str, Any] | None:
    """The values that a call of the flow begins with: its tensors and the numbers of its symbols.

    None where the tensors are not such as it was captured for.
    """
    values: dict[str, Any] = dict(zip(flow.parameters, tensors, strict=True))
    for name, other in flow.same.items():
        if values[name] is not values[other]:
            return None
    for name, dtype in flow.dtypes.items():
        if values[name].dtype is not dtype:
            return None
    later: list[tuple[Any, int]] = []
    for name, sizes in flow.sizes.items():
        shape = values[name].shape
        if len(shape) != len(sizes):
            return None
        for size, number in zip(sizes, shape, strict=True):
            if isinstance(size, int):
                if size != number:
                    return None
            elif isinstance(size, str):
                if values.setdefault(size, number) != number:
                    return None
            else:
                later.append((size, number))
    for symbol, (least, most) in flow.ranges.items():
        number = values.get(symbol)
        if number is None or number < least or (most >= 0 and number > most):
            return None
    if later or flow.conditions:
        for size, number in later:
            if not holds(("==", size, number), values):
                return None
        for condition in flow.conditions:
            if not holds(condition, values):
                return None
    return values


def write_back(flow: Flow, module_of: Callable[[str], nn.Module], values: Mapping[str, Any]) -> None:
    """Writes what the forward writes into buffers and arguments; ``values`` holds these too."""
    with torch.no_grad():
        for kind, name, value in flow.writes:
            if kind == "argument":
                values[name].copy_(values[value])
            else:
                owner, _, attribute = name.rpartition(".")
                buffer = module_of(owner)._buffers[attribute]
                assert buffer is not None
                buffer.copy_(values[value])


def kept_values(flow: Flow) -> Iterator[str]:
    """Names of the values that are needed when all steps have run."""
    yield from refs(flow.output)
    for kind, name, value in flow.writes:
        yield value
        if kind == "argument":
            yield name


def refs(value: Any) -> Iterator[str]:
    """Names of the values that a nested argument reads, in order, with repetitions.

    Symbols of sizes are among them.
    """
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, Size):
        yield from symbols_of(value.expression)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        yield from refs(list(value.values()))
    elif isinstance(value, slice):
        yield from refs([value.start, value.stop, value.step])


def evaluate(step: Step, module_of: Callable[[str], nn.Module], values: dict[str, Any]) -> Any:
    """The step's float result, also stored in ``values``, as are those of the steps fused in it.

    module_of: qualified name from the root model to the module (``model.get_submodule``).
    """
    if step.fused:
        for part in step.fused:
            evaluate(part, module_of, values)
        return values[step.output]
    if step.function == "get_attr":
        owner, _, name = step.args[0].rpartition(".")
        result = _tensor_of(module_of(owner), name)
    else:
        args = with_values(step.args, values)
        kwargs = {key: with_values(value, values) for key, value in step.kwargs}
        if step.function == "constant":
            elements, shape, dtype = args
            result = torch.tensor(elements, dtype=dtype, device="cpu").view(shape)
        elif step.function.startswith(OPERATOR):
            result = operator_of(step.function)(*args, **kwargs)
        elif step.function:
            result = FUNCTIONS[step.function](*args, **kwargs)
        elif args or kwargs:
            result = module_of(step.module)(*args, **kwargs)
        else:
            result = module_of(step.module)(values[step.inputs[0]])
    values[step.output] = result
    return result


def _tensor_of(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer by its name, or what computes it: never another attribute."""
    for table in (module._parameters, module._buffers, module.__dict__):
        found = table.get(name)
        if isinstance(found, torch.Tensor):
            return found
    if name in getattr(type(module), "computed_tensors", ()) or parametrize.is_parametrized(
        module, name
    ):
        computed: torch.Tensor = getattr(module, name)
        return computed
    raise AttributeError(
        f"flow: expected a parameter or buffer {name!r} of the {type(module).__name__}, got none."
    )


def run(
    flow: Flow,
    model: nn.Module,
    *args: Any,
    observe: Callable[[str, torch.Tensor], None] | None = None,
) -> Any:
    """What the flow returns in float for the tensors ``args``, one a parameter.

    observe: called as ``observe(value, tensor)`` for each parameter and each step's result that is
      a tensor, as soon as it exists (a later in-place module may overwrite it).
    """
    if len(args) != len(flow.parameters):
        names = ", ".join(flow.parameters)
        raise TypeError(
            f"flow {flow.path!r}: expected {len(flow.parameters)} tensors ({names}), "
            f"got {len(args)}."
        )

    def tensors_only(name: str, value: Any) -> None:
        if observe is not None and isinstance(value, torch.Tensor):
            observe(name, value)

    return walk(flow, model, args, tensors_only)


def walk(
    flow: Flow, model: nn.Module, args: tuple[Any, ...], define: Callable[[str, Any], None]
) -> Any:
    """Like `run`; ``define(name, value)`` is called for every value, tensor or not.

    Values are dropped after their last use.
    """
    values = bound(flow, args)
    if values is None:
        raise ValueError(f"flow {flow.path!r}: expected tensors that fit it, got others.")
    last_use: dict[str, int] = {}
    for position, step in enumerate(flow.steps):
        for part in step.fused or (step,):
            for name in (part.output, *part.inputs, *refs([part.args, dict(part.kwargs)])):
                last_use[name] = position
    for name in kept_values(flow):
        last_use[name] = len(flow.steps)
    dying: dict[int, list[str]] = {}
    for name, position in last_use.items():
        dying.setdefault(position, []).append(name)
    for name, value in zip(flow.parameters, args, strict=True):
        define(name, value)
    for position, step in enumerate(flow.steps):
        for part in step.fused or (step,):
            define(part.output, evaluate(part, model.get_submodule, values))
        for name in dying.get(position, ()):
            values.pop(name, None)
    result = with_values(flow.output, values)
    write_back(flow, model.get_submodule, values)
    return result


_MAY_BE_EMPTY = frozenset(
    "fused training sizes ranges conditions dtypes same writes form reads".split(" ")
)
_SPECIAL_FLOATS = {float("inf"): "inf", float("-inf"): "-inf"}


def to_data(value: Any) -> Any:
    """Steps, flows and their arguments as JSON data; `from_data` is the inverse.

    Raises TypeError for anything that a flow may not hold.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": _SPECIAL_FLOATS[value]} if value in _SPECIAL_FLOATS else value
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Size):
        return {"size": to_data(value.expression)}
    if isinstance(value, list):
        return [to_data(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [to_data(item) for item in value]}
    if isinstance(value, slice):
        return {"slice": [to_data(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, Mapping):
        return {"dict": [[to_data(key), to_data(item)] for key, item in value.items()]}
    if isinstance(value, (Step, Flow)):
        name = "step" if isinstance(value, Step) else "flow"
        return {
            name: {
                key: to_data(item)
                for key, item in vars(value).items()
                if item or key not in _MAY_BE_EMPTY
            }
        }
    raise TypeError(f"flow: expected plain data, got {type(value).__name__}.")


def from_data(data: Any) -> Any:
    """What `to_data` was given; TypeError or ValueError for anything that it does not give.

    ``data`` may come from a stranger: nothing that it says is called, imported or looked up in
    torch.
    """
    if isinstance(data, list):
        return [from_data(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError(f"flow: expected one tag, got {describe(data)}.")
    ((tag, content),) = data.items()
    if tag == "float" and isinstance(content, (str, int, float)):
        return float(content)
    if tag == "ref" and isinstance(content, str):
        return Ref(content)
    if tag == "size":
        return Size(from_data(content))
    if tag == "tuple" and isinstance(content, list):
        return tuple(from_data(item) for item in content)
    if tag == "slice" and isinstance(content, list) and len(content) == 3:
        return slice(*(from_data(part) for part in content))
    if tag == "ellipsis" and content is True:
        return Ellipsis
    if tag == "torch":
        if not isinstance(content, str) or content not in _torch_constants():
            raise ValueError(
                f"flow: expected a torch dtype, layout or memory format, got {describe(content)}."
            )
        return _torch_constants()[content]
    if tag == "device":
        return _device(content)
    if tag == "dict" and isinstance(content, list):
        return dict(_pair(item) for item in content)
    if tag in ("step", "flow") and isinstance(content, dict):
        fields = {key: from_data(item) for key, item in content.items()}
        return made(Step if tag == "step" else Flow, fields)
    raise ValueError(f"flow: expected a known tag with its content, got {describe(data)}.")


@functools.cache
def _torch_constants() -> dict[str, Any]:
    """The constants that steps may hold, by the names that they give themselves."""
    kinds = (torch.dtype, torch.memory_format, torch.layout)
    return {
        str(value).removeprefix("torch."): value
        for value in vars(torch).values()
        if isinstance(value, kinds)
    }


def _device(content: Any) -> torch.device:
    try:
        if isinstance(content, str):
            return torch.device(content)
    except RuntimeError:
        pass
    raise ValueError(f"flow: expected a torch device, got {describe(content)}.")


def _pair(data: Any) -> tuple[Any, Any]:
    if not isinstance(data, list) or len(data) != 2:
        raise ValueError(f"flow: expected a key and its value, got {describe(data)}.")
    key, item = map(from_data, data)
    if not isinstance(key, (str, int, float, bool, type(None))):
        raise TypeError(f"flow: expected a plain key, got {describe(key)}.")
    return key, item
