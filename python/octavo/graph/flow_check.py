"""Flows out of files, which may come from strangers: only calls that capture could have found.

A flow is run step by step. What its steps name must therefore be known beforehand: modules are
layers that capture takes as one step, functions are rows of the table with words that they take,
and all that is read of a module is a parameter or a buffer. Nothing else of a model can be reached
through a flow, whatever a file says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from octavo.errors import describe
from octavo.graph.exported import is_one_step
from octavo.graph.flow import KINDS, Flow, Ref, Step, refs
from octavo.graph.functions import ATTRIBUTES, FUNCTIONS, takes_word
from octavo.graph.instances import Instance, class_of
from octavo.graph.operators import OPERATOR, is_operator, takes
from octavo.graph.sizes import Size, is_condition, is_expression
from octavo.graph.trace import is_leaf, returns_its_input

__all__ = ["FlowCheck"]

_PLAIN = (Ref, str, type(None), type(...), torch.dtype, torch.device, torch.memory_format)
_MAX_INTEGER = 2**63 - 1  # Of what torch takes.


class FlowCheck:
    """What the flows of one model may name.

    model: the float model, its weights plain or computed, its modules separated.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tensors = {
            *(name for name, _ in model.named_parameters(remove_duplicate=False)),
            *(name for name, _ in model.named_buffers(remove_duplicate=False)),
            *_computed(self.modules),
        }
        self._identities: dict[str, bool] = {}
        self._symbols: frozenset[str] = frozenset()

    def check(self, flow: Flow, items: Iterable[Step]) -> None:
        """ValueError unless every step of the flow, and of what it became, is one of capture's."""
        module = self.modules.get(flow.path)
        if module is None or is_leaf(module):
            raise ValueError(f"expected a flow of one of the modules, got {describe(flow.path)}.")
        self._symbols = frozenset(flow.ranges)
        self._check_sizes(flow)
        self._check_values([flow.output, dict(flow.constants)])
        for step in (*flow.steps, *flow.training.values(), *items):
            self._check_step(step, f"{flow.path}." if flow.path else "")

    def _check_step(self, step: Step, prefix: str) -> None:
        if step.kind not in KINDS:
            raise ValueError(f"expected steps of a known kind, got {describe(step.kind)}.")
        self._check_values([step.args, [value for _, value in step.kwargs], dict(step.params)])
        if step.fused:
            for part in step.fused:
                self._check_step(part, prefix)
        elif bool(step.module) == bool(step.function):
            raise ValueError(
                "expected steps that call a module or a function, got "
                f"{describe(step.module)} and {describe(step.function)}."
            )
        if step.module:
            self._check_module(step, prefix)
        if step.function == "get_attr":
            self._check_tensor(step, prefix)
        elif step.function == "constant":
            self._check_constant(step)
        elif step.function.startswith(OPERATOR):
            self._check_operator(step)
        elif step.function:
            self._check_function(step)

    def _check_module(self, step: Step, prefix: str) -> None:
        module = self.modules.get(step.module)
        if module is None:
            raise ValueError(
                f"expected steps that call modules of the model, got {describe(step.module)}."
            )
        if not step.module.startswith(prefix):
            raise ValueError(
                f"expected steps that call modules inside {describe(prefix[:-1])}, got "
                f"{describe(step.module)}."
            )
        if not is_one_step(module) and not is_leaf(module) and not self._is_identity(step.module):
            raise ValueError(
                "expected steps that call layers whose forward is torch's own, got "
                f"{describe(step.module)}, a {type(module).__name__}."
            )
        if not (step.args or step.kwargs):
            if not step.inputs:
                raise ValueError(f"expected an input of {describe(step.module)}, got none.")
        elif not isinstance(module, torch.jit.ScriptModule):
            try:
                inspect.signature(module.forward).bind(*step.args, **dict(step.kwargs))
            except TypeError as error:
                raise ValueError(
                    f"expected arguments that {describe(step.module)} takes, got others ({error})."
                ) from None

    def _is_identity(self, name: str) -> bool:
        if name not in self._identities:
            self._identities[name] = returns_its_input(self.modules[name])
        return self._identities[name]

    def _check_tensor(self, step: Step, prefix: str) -> None:
        name = step.args[0] if len(step.args) == 1 and not step.kwargs else step.args
        if not isinstance(name, str) or not name.startswith(prefix) or name not in self.tensors:
            raise ValueError(
                "expected steps that read parameters and buffers inside the flow's own module, got "
                f"{describe(name)}."
            )

    def _check_function(self, step: Step) -> None:
        if step.function not in FUNCTIONS:
            raise ValueError(
                f"expected steps that call functions of octavo's table, got "
                f"{describe(step.function)}."
            )
        if step.function == "getattr" and step.args[1:] not in {(name,) for name in ATTRIBUTES}:
            raise ValueError(
                f"expected steps that read {', '.join(sorted(ATTRIBUTES))} of tensors, got "
                f"{describe(step.args[1:])}."
            )
        words = [word for word, _ in step.kwargs if not takes_word(step.function, word)]
        if words:
            raise ValueError(
                f"expected argument words that {step.function} takes, got {describe(words[0])}."
            )
        if not any(True for _ in refs([step.args, dict(step.kwargs)])):
            raise ValueError(
                f"expected steps that compute with values, got {step.function} of constants."
            )
        if _writes(step):
            raise ValueError(
                f"expected steps that write into no argument, got {step.function} with one to "
                "write into."
            )

    def _check_sizes(self, flow: Flow) -> None:
        """Sizes, ranges, conditions, dtypes and writes are those of the flow's own parameters."""
        own = set(flow.parameters)
        others = {*flow.sizes, *flow.dtypes, *flow.same, *flow.same.values()} - own
        if others:
            raise ValueError(
                f"expected sizes and types of {describe(sorted(own))}, got those of "
                f"{describe(sorted(map(str, others)))}."
            )
        if any(not s.startswith("$") or len(pair) != 2 for s, pair in flow.ranges.items()):
            raise ValueError(f"expected ranges of symbols, got {describe(dict(flow.ranges))}.")
        for size in (size for sizes in flow.sizes.values() for size in sizes):
            if not is_expression(size, self._symbols):
                raise ValueError(f"expected sizes of symbols, got {describe(size)}.")
        named = {size for sizes in flow.sizes.values() for size in sizes if isinstance(size, str)}
        if not self._symbols <= named:
            raise ValueError(
                "expected symbols that stand for a size, got "
                f"{describe(sorted(self._symbols - named))} that stand for none."
            )
        for condition in flow.conditions:
            if not is_condition(condition, self._symbols):
                raise ValueError(f"expected conditions on symbols, got {describe(condition)}.")
        if not all(isinstance(dtype, torch.dtype) for dtype in flow.dtypes.values()):
            raise ValueError(f"expected dtypes, got {describe(dict(flow.dtypes))}.")
        prefix = f"{flow.path}." if flow.path else ""
        for kind, name, _ in flow.writes:
            owner, _, attribute = name.rpartition(".")
            module = self.modules.get(owner)
            is_buffer = (
                kind == "buffer"
                and name.startswith(prefix)
                and module is not None
                and isinstance(module._buffers.get(attribute), torch.Tensor)
            )
            if not is_buffer and not (kind == "argument" and name in own):
                raise ValueError(f"expected writes into buffers, got {describe((kind, name))}.")

    def _check_constant(self, step: Step) -> None:
        elements, shape, dtype = step.args
        plain = isinstance(elements, tuple) and all(type(e) in (bool, int, float) for e in elements)
        sized = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if step.kwargs or not (plain and sized and isinstance(dtype, torch.dtype)):
            raise ValueError(f"expected the numbers of a tensor, got {describe(step.args)}.")

    def _check_operator(self, step: Step) -> None:
        words = tuple(word for word, _ in step.kwargs)
        if not is_operator(step.function) or not takes(step.function, len(step.args), words):
            raise ValueError(
                "expected operators of octavo's list with arguments that they take, got "
                f"{describe(step.function)} with {len(step.args)} and {describe(list(words))}."
            )

    def _check_values(self, value: Any) -> None:
        for leaf in _leaves(value):
            if isinstance(leaf, Size):
                if not is_expression(leaf.expression, self._symbols):
                    raise ValueError(f"expected sizes of symbols, got {describe(leaf)}.")
                continue
            if isinstance(leaf, (_PLAIN, bool, float, torch.layout)):
                continue
            if not isinstance(leaf, int) or abs(leaf) > _MAX_INTEGER:
                raise ValueError(f"expected arguments of plain data, got {describe(leaf)}.")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, Instance):
        class_of(value.name)
        yield from _leaves(value.fields)
    elif isinstance(value, slice):
        yield from _leaves([value.start, value.stop, value.step])
    else:
        yield value


def _computed(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Names of the tensors that parametrizations, weight_norm and spectral_norm compute."""
    for path, module in modules.items():
        names: list[str] = []
        if parametrize.is_parametrized(module):
            names += cast(nn.ModuleDict, module.parametrizations)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                names.append(hook.name)
        for name in names:
            yield f"{path}.{name}" if path else name


def _writes(step: Step) -> bool:
    """Whether a call says by position where its result is to be written."""
    try:
        bound = inspect.signature(FUNCTIONS[step.function]).bind(*step.args, **dict(step.kwargs))
    except (TypeError, ValueError):
        return False  # One of C has no signature, and takes "out" by its word only.
    return bound.arguments.get("out") is not None
