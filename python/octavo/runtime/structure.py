"""Whether a captured module is still what it was captured as: children, classes, what it reads.

Parameters and buffers are read anew in every call. All else that a forward depends on is looked at
before each call: identities of children, their classes, attributes and settings that the forward
has read. Where one has changed, the class's own forward runs, which is always right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from octavo import _C
from octavo.graph.flow import Flow
from octavo.graph.form import ADDED, inner_modules, is_form
from octavo.nn.layer import QLayer

__all__ = ["Structure"]


class Structure:
    """The modules of one owner as they are now, and how to see that they are other ones.

    Args:
        owner: the captured module.
        children: its table of children.
        flow: tells what it was when it was captured, and what it reads.
        known: what attributes that are no plain data were; filled by the first one of an owner.
        tensors: parameters and buffers whose numbers stand in regions; names in the owner.

    Attributes:
        fits: whether it is what was captured.
        is_partial: whether the owner, which is being copied, had no attributes of its own yet.
    """

    def __init__(
        self,
        owner: nn.Module,
        children: dict[str, nn.Module | None],
        flow: Flow,
        known: dict[tuple[str, ...], Any],
        tensors: Iterable[str] = (),
    ) -> None:
        self.fits = is_form(owner, children, flow.form)
        self.is_partial = "training" not in vars(owner)
        tables, keys, values = list[Any](), list[str](), list[Any]()
        contents = list[tuple[Any, Any]]()
        modules = {"": owner, **dict(inner_modules(owner, children))}
        modules = {n: m for n, m in modules.items() if not isinstance(m, torch.jit.ScriptModule)}
        counted = [module._modules if name else children for name, module in modules.items()]
        table: dict[str, Any]
        for below in counted:
            for key, child in below.items():
                if key not in ADDED:
                    tables.append(below)
                    keys.append(key)
                    values.append(child)
        for read, is_plain, wanted in flow.reads:
            name, key, *rest = read
            inside = name.removeprefix(flow.path).removeprefix(".") if flow.path else name
            module = modules.get(inside)
            table = {} if module is None else vars(module)
            if rest:
                table, key = getattr(table.get(key), "__dict__", {}), rest[0]
            if key not in table:
                # Quantized layers do without some attributes.
                known_to_lack = module is None or isinstance(module, QLayer)
                self.fits &= known_to_lack or (self.is_partial and not inside)
                continue
            now = table[key]
            if is_plain:
                alike = type(now) is type(wanted) or isinstance(now, tuple)
                self.fits = self.fits and alike and now == wanted
            elif known.setdefault(read, now) is not now:
                self.fits = False
            tables.append(table)
            keys.append(key)
            values.append(now)
            if isinstance(now, (torch.Tensor, list, dict, set)):
                content = known.setdefault(("", *read), _content(now))
                self.fits = self.fits and _is_content(now, content)
                contents.append((now, content))
        versions = list[tuple[torch.Tensor, int]]()
        for name in tensors:
            inside, _, key = name.rpartition(".")
            found = modules.get(inside)
            for table in () if found is None else (found._parameters, found._buffers, vars(found)):
                tensor = table.get(key)
                if isinstance(tensor, torch.Tensor) and not tensor.is_inference():
                    if known.setdefault((name,), (tensor._version,)) != (tensor._version,):
                        self.fits = False
                    if known.setdefault(("", name), tensor) is not tensor:
                        self.fits = False
                    tables.append(table)
                    keys.append(key)
                    values.append(tensor)
                    versions.append((tensor, tensor._version))
        others = {name: module for name, module in modules.items() if name}
        self._versions = versions
        self._contents = contents
        # Not the owner, which would be kept alive by what it holds.
        self._parts: tuple[Any, ...] = (
            tuple(tables),
            tuple(keys),
            tuple(values),
            tuple(counted),
            tuple(map(len, counted)),
            tuple(others.values()),
            tuple(map(type, others.values())),
        )
        self._class = type(owner)

    def is_same(self, owner: nn.Module) -> bool:
        """Whether nothing has changed since. Hundreds of comparisons in a few microseconds."""
        return (
            not self.is_partial
            and type(owner) is self._class
            and _C.is_unchanged(*self._parts)
            and all(tensor._version == version for tensor, version in self._versions)
            and all(_is_content(value, content) for value, content in self._contents)
        )


def _content(value: Any, depth: int = 0) -> Any:
    """What can be written into a value without making it another object."""
    if isinstance(value, torch.Tensor):
        return None if value.is_inference() else (value, value._version)
    if type(value) is list and depth < 4:
        return [_content(item, depth + 1) for item in value]
    if type(value) is dict and depth < 4:
        return {key: _content(item, depth + 1) for key, item in value.items()}
    return set(value) if type(value) is set else value


def _is_content(value: Any, content: Any) -> bool:
    """Whether a value holds what it held."""
    if isinstance(value, torch.Tensor):
        return content is None or (content[0] is value and content[1] == value._version)
    if type(value) is list and type(content) is list:
        return len(value) == len(content) and all(map(_is_content, value, content))
    if type(value) is dict and type(content) is dict:
        return value.keys() == content.keys() and all(
            _is_content(item, content[key]) for key, item in value.items()
        )
    if isinstance(value, (bool, int, float, str, set)):
        return type(value) is type(content) and (value is content or value == content)
    return value is content
