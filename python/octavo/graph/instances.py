"""Results that are objects: named tuples, dataclasses, and what transformers calls a ModelOutput.

They are taken apart and built again field by field. No constructor runs: what a file names must be
such a class of a module that is imported already, and its code is not called.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

__all__ = ["Instance", "build", "class_of", "taken_apart"]


@dataclass(frozen=True)
class Instance:
    """An object of a class ("module:qualified name") by its fields, in their order."""

    name: str
    fields: tuple[tuple[str, Any], ...]


def taken_apart(value: Any) -> Instance | None:
    """An object by its fields; None for one of another kind of class."""
    cls = type(value)
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not _is_known(cls) or _find(name) is not cls:
        return None
    if issubclass(cls, tuple):
        return Instance(name, tuple(zip(cls._fields, value, strict=True)))
    own = [field.name for field in dataclasses.fields(cls)]
    extra = set(vars(value)) - set(own)
    if extra or (isinstance(value, dict) and not set(value) <= set(own)):
        return None
    return Instance(name, tuple((key, getattr(value, key)) for key in own))


def build(name: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    """An object of the class with these fields."""
    cls = class_of(name)
    if issubclass(cls, tuple):
        return tuple.__new__(cls, [value for _, value in fields])
    made = OrderedDict.__new__(cls) if issubclass(cls, OrderedDict) else object.__new__(cls)
    for key, value in fields:
        object.__setattr__(made, key, value)
        if isinstance(made, OrderedDict) and value is not None:
            OrderedDict.__setitem__(made, key, value)
    return made


def class_of(name: str) -> Any:
    """The class that a flow names; ValueError where there is none of a known kind."""
    cls = _find(name)
    if cls is None or not _is_known(cls):
        raise ValueError(f"flow: expected the class of a result that is known, got {name!r}.")
    return cls


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) else None


def _is_known(cls: type) -> bool:
    """A NamedTuple, or a dataclass that is an ordinary object or an ordered dict."""
    if issubclass(cls, tuple):
        return isinstance(getattr(cls, "_fields", None), tuple)
    if not dataclasses.is_dataclass(cls):
        return False
    if issubclass(cls, dict) and not issubclass(cls, OrderedDict):
        return False
    return "__slots__" not in vars(cls)
