"""What forwards change in their modules is put back: calibration's calls are none of the user's."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from octavo.nn.surgery import MODULE_STATE

__all__ = ["state_kept"]

_MOST_ITEMS = 10_000  # Of a container that is looked into.


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """When the context ends, buffers and plain attributes of all modules are what they were.

    Tensors, lists, dicts, sets and deques get their contents back, and stay the objects they are.
    What an attribute holds besides (objects of other classes) is not looked into. Modules that have
    become others meanwhile (lazy ones) are left alone.
    """
    undo = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        attributes = _contents_of(
            vars(module), {name for name in vars(module) if name not in MODULE_STATE}
        )
        undo.append((module, type(module), attributes, _contents_of(module._buffers)))
    try:
        yield
    finally:
        with torch.no_grad():
            for module, cls, attributes, buffers in undo:
                if type(module) is cls:
                    attributes()
                    buffers()


def _contents_of(table: dict[str, Any], names: set[str] | None = None) -> Callable[[], None]:
    """Puts entries of a table back, and what they hold; new ones of a module's are taken out."""
    before = {name: table[name] for name in (table if names is None else names)}
    inside = [undo for undo in map(_content_of, before.values()) if undo]

    def put_back() -> None:
        for name in [n for n in table if n not in before and n not in MODULE_STATE]:
            del table[name]
        for name, value in before.items():
            if table.get(name, put_back) is not value:
                table[name] = value
        for undo in inside:
            undo()

    return put_back


def _content_of(value: Any, depth: int = 0) -> Callable[[], None] | None:
    """What puts the contents of a value back; None for what has none."""
    if isinstance(value, Tensor):
        return _elements_of(value)
    if type(value) not in (list, tuple, dict, set, deque) or depth > 4:
        return None
    if len(value) > _MOST_ITEMS:
        return None
    items = value.values() if isinstance(value, dict) else value
    inside = [undo for undo in (_content_of(item, depth + 1) for item in items) if undo]
    before = value if isinstance(value, tuple) else value.copy()

    def put_back() -> None:
        if isinstance(value, list):
            value[:] = before
        elif isinstance(value, deque):
            value.clear()
            value.extend(before)
        elif isinstance(value, (dict, set)):
            value.clear()
            value.update(before)
        for undo in inside:
            undo()

    return None if isinstance(value, tuple) and not inside else put_back


def _elements_of(tensor: Tensor) -> Callable[[], None] | None:
    if type(tensor) not in (Tensor, nn.Buffer) or tensor.layout is not torch.strided:
        return None
    before = tensor.detach().clone()

    def put_back() -> None:
        if tensor.shape != before.shape or tensor.dtype != before.dtype:
            tensor.data = before.clone()
        elif not torch.equal(tensor, before):
            with torch.inference_mode(tensor.is_inference()):
                tensor.copy_(before)

    return put_back
