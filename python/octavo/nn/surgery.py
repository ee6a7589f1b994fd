"""Copies of a model, and modules put in the place of others wherever it has them."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from octavo.interrupts import undo_with

__all__ = [
    "MODULE_STATE",
    "copy_model",
    "own_class",
    "replace_modules",
    "tensors_on_cpu",
    "unharmed",
]

# What a layer that replaces another has to itself: the rest it shares with the model it came from.
_OWN = frozenset({"_parameters", "panel", "_prepared", "input_params", "float_class"})

#: What every module has in its ``__dict__``, whatever its class: torch's own tables and flags.
MODULE_STATE = frozenset(nn.Module().__dict__)


def copy_model(
    model: nn.Module,
    replaced: Mapping[int, nn.Module] | None = None,
    shared: Iterable[Tensor] = (),
) -> nn.Module:
    """A deep copy; tensors that are no leaves become clones, hook callables stay the same objects.

    So do mappings of modules that are frozen: nobody can write into them.

    Args:
        model: any module.
        replaced: id of a module to the module that stands for it, wherever it is referred to.
        shared: tensors that the copy has in common with ``model``.

    Raises TypeError where something cannot be copied, with its name.
    """
    memo: dict[int, Any] = dict(replaced or {})
    memo.update((id(parameter), parameter) for parameter in shared)
    kept: list[Any] = []  # memo holds ids: what they belong to must live as long.
    for module in model.modules():
        for name, table in module.__dict__.items():
            if "hooks" in name and isinstance(table, dict):
                for hook in table.values():
                    memo[id(hook)] = hook
            elif name not in MODULE_STATE and _is_frozen(table, memo):
                memo[id(table)] = table
            elif not name.startswith("_"):
                _clone_non_leaves(table, memo, kept)
        for tensors in (module._parameters, module._buffers):
            _clone_non_leaves(tensors, memo, kept)
    # A layer that replaces another one took over its hook tables: the copy needs tables of its own.
    result: nn.Module = memo[id(model)] if id(model) in memo else _deepcopy(model, memo)
    for layer in (replaced or {}).values():
        for name, value in layer.__dict__.items():
            if name not in _OWN:
                layer.__dict__[name] = copy.deepcopy(value, memo)
    for module in result.modules():
        if parametrize.is_parametrized(module):
            own_class(module)
    return result


def tensors_on_cpu() -> AbstractContextManager[object]:
    """Where tensors are made on the CPU, whatever torch's default device is."""
    made = torch.empty(0, dtype=torch.uint8)
    return contextlib.nullcontext() if made.is_cpu else torch.device("cpu")


def own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class of its own again, in place.

    torch makes the class for one module, deep copies share it, and removing a parametrization
    changes it.
    """
    own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(type(module).__name__, type(module).__bases__, own)


def _is_frozen(value: Any, memo: dict[int, Any]) -> bool:
    """Whether a mapping refuses to be copied although its items do not."""
    if not isinstance(value, Mapping) or type(value) in (dict, OrderedDict, defaultdict):
        return False
    return _refusal(value, memo) is not None and _refusal(dict(value.items()), memo) is None


def _refusal(value: Any, memo: dict[int, Any]) -> Exception | None:
    """The error of a deep copy."""
    try:
        copy.deepcopy(value, dict(memo))
    except MemoryError:
        raise
    except Exception as error:
        return error
    return None


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """``copy.deepcopy``; a TypeError that names what cannot be copied."""
    before = dict(memo)
    try:
        return copy.deepcopy(model, memo)
    except MemoryError:
        raise
    except Exception as error:  # Any code may run here, so any error may come out.
        for path, module in model.named_modules():
            for name, value in module.__dict__.items():
                reason = None if name in MODULE_STATE else _refusal(value, before)
                if reason is not None:
                    raise TypeError(
                        "model: expected modules that can be copied, got attribute "
                        f"{f'{path}.{name}'.lstrip('.')!r} of a {type(module).__name__}, a "
                        f"{type(value).__name__} ({reason}). Pass inplace=True to quantize, which "
                        "needs no copy, or take the attribute off meanwhile."
                    ) from error
        raise


def _clone_non_leaves(value: Any, memo: dict[int, Any], kept: list[Any], depth: int = 0) -> None:
    if isinstance(value, Tensor):
        if not value.is_leaf and id(value) not in memo:
            with torch.no_grad():
                memo[id(value)] = value.detach().clone()
            kept.append(value)
    elif isinstance(value, (list, tuple)) and depth < 4:
        for item in value:
            _clone_non_leaves(item, memo, kept, depth + 1)
    elif isinstance(value, dict) and depth < 4:
        for item in value.values():
            _clone_non_leaves(item, memo, kept, depth + 1)


def replace_modules(model: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """``model`` itself with modules replaced wherever it has them as children."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    if id(model) in replaced:
        # The root is the layer: the object that the caller holds becomes the new layer.
        layer = replaced[id(model)]
        model.__dict__.clear()
        model.__class__ = type(layer)
        model.__dict__.update(layer.__dict__)
    return model


@contextlib.contextmanager
def unharmed(model: nn.Module) -> Iterator[None]:
    """Puts every module back as it was if anything goes wrong.

    Stages replace tensors, they never write into them.
    """
    saved = []
    for module in model.modules():
        state = dict(module.__dict__)
        # Of containers, stages write into torch's own tables alone: the user's may refuse it.
        tables = [
            (table, table.copy())
            for name, table in state.items()
            if name in MODULE_STATE and isinstance(table, (dict, set))
        ]
        saved.append((module, type(module), state, tables))

    def put_back() -> None:
        for module, cls, state, tables in saved:
            if type(module) is not cls:
                module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(state)
            for table, content in tables:
                table.clear()
                table.update(content)

    undo_with(put_back)  # Not here: Ctrl-C may come behind the last step.
    yield
