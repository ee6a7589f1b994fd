"""What forwards read while they run: attributes of modules and of their configs, others' tensors.

A captured forward is right only while what it has read is the same. Reads are seen by subclasses
that the modules of a private copy are given for one call.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.flow import Flow
from octavo.graph.trace import is_leaf
from octavo.nn.surgery import MODULE_STATE

__all__ = ["Read", "Reads", "recorded", "tensors_read"]

Read = tuple[str, ...]
"""A module's qualified name, an attribute, and maybe an attribute of what that holds."""

_PLAIN = (bool, int, float, str, type(None))
_MOST_ITEMS = 100  # Of a container that is plain data.


class Reads:
    """What was read.

    Attributes:
        attributes: to what was found there.
        elsewhere: qualified names of parameters and buffers that were read while another module's
            forward ran than their owner's.
    """

    def __init__(self) -> None:
        self.attributes: dict[Read, Any] = {}
        self.elsewhere: set[str] = set()

    def plain(self) -> tuple[tuple[Read, bool, Any], ...]:
        """Attributes, whether they are plain data, and a copy of that data."""
        return tuple(
            (read, True, copy.deepcopy(value)) if _is_plain(value) else (read, False, None)
            for read, value in self.attributes.items()
        )


@contextlib.contextmanager
def recorded(module: nn.Module, names: Mapping[int, str]) -> Iterator[Reads]:
    """What calls of ``module`` read while the context lasts.

    Args:
        module: a copy that nobody else uses.
        names: id of each of its modules to its qualified name.
    """
    reads, running = Reads(), list[Any]()
    changed: list[tuple[Any, type]] = []
    try:
        for child in module.modules():
            if not isinstance(child, torch.jit.ScriptModule):
                _watch_module(child, names[id(child)], reads, running, changed)
        yield reads
    finally:
        for watched, cls in reversed(changed):
            object.__setattr__(watched, "__class__", cls)


def tensors_read(model: nn.Module, flows: Iterable[Flow]) -> Iterator[str]:
    """Names of tensors of torch's own layers that steps read besides the calls of these layers."""
    for flow in flows:
        for step in flow.steps:
            for part in step.fused or (step,):
                if part.function == "get_attr":
                    name = part.args[0]
                    if is_leaf(model.get_submodule(name.rpartition(".")[0])):
                        yield name


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether it is data that a file can hold: numbers, words, and short containers of these."""
    if type(value) in (tuple, torch.Size, list, dict):
        if depth > 3 or len(value) > _MOST_ITEMS:
            return False
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return all(_is_plain(item, depth + 1) for item in items)
    return type(value) in _PLAIN and not (isinstance(value, float) and math.isnan(value))


def _watch_module(
    module: nn.Module,
    name: str,
    reads: Reads,
    running: list[Any],
    changed: list[tuple[Any, type]],
) -> None:
    own = vars(module)
    tensors = {
        key
        for table in (module._parameters, module._buffers)
        for key, value in table.items()
        if value is not None
    }

    def read(watched: Any, key: str) -> Any:
        if key in tensors and (not running or running[-1] is not watched):
            reads.elsewhere.add(f"{name}.{key}" if name else key)
        value = get(watched, key)
        if key in own and (key == "training" or key not in MODULE_STATE):
            reads.attributes[name, key] = value
        return value

    def call(watched: Any, *args: Any, **kwargs: Any) -> Any:
        running.append(watched)
        try:
            return cls.__call__(watched, *args, **kwargs)
        finally:
            running.pop()

    cls = type(module)
    get: Any = cls.__getattribute__
    _become(module, {"__getattribute__": read, "__call__": call}, changed)
    for key, held in list(own.items()):
        if key not in MODULE_STATE and _is_config(held):
            _watch_config(held, (name, key), reads, changed)


def _watch_config(config: Any, where: Read, reads: Reads, changed: list[tuple[Any, type]]) -> None:
    get: Any = type(config).__getattribute__
    if any(watched is config for watched, _ in changed):
        return

    def read(watched: Any, key: str) -> Any:
        value = get(watched, key)
        if key in get(watched, "__dict__") and not key.startswith("__"):
            reads.attributes.setdefault((*where, key), value)
        return value

    _become(config, {"__getattribute__": read}, changed)


def _become(watched: Any, members: dict[str, Any], changed: list[tuple[Any, type]]) -> None:
    """Gives an object a subclass of its class; leaves it alone where that cannot be."""
    cls: Any = type(watched)
    try:
        made = type(cls)(cls.__name__, (cls,), {**members, "__module__": cls.__module__})
        object.__setattr__(watched, "__class__", made)
    except Exception:  # A metaclass or __init_subclass__ of the user's: any error may come out.
        return
    changed.append((watched, cls))


def _is_config(value: Any) -> bool:
    """Whether an attribute holds settings: an object with attributes that is nothing to call."""
    if isinstance(value, (Tensor, nn.Module, type)) or callable(value):
        return False
    module = type(value).__module__
    return hasattr(value, "__dict__") and module.partition(".")[0] not in ("torch", "builtins")
