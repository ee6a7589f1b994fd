"""Dataclasses out of data that may come from a stranger: fields have the types they declare."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from octavo.errors import describe

__all__ = ["fits", "made"]

T = TypeVar("T")


def made(cls: type[T], data: Any) -> T:
    """The dataclass ``cls`` with the fields of a mapping; TypeError for any other data."""
    if not isinstance(data, dict):
        raise TypeError(f"{cls.__name__}: expected fields by name, got {describe(data)}.")
    hints = _hints(cls)  # type: ignore[arg-type]
    for name, value in data.items():
        if name not in hints:
            raise TypeError(
                f"{cls.__name__}: expected fields of {', '.join(hints)}, got {describe(name)}."
            )
        if not fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", hints[name])
            raise TypeError(f"{cls.__name__}.{name}: expected {wanted}, got {describe(value)}.")
    return cls(**data)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type, its items included. A bool is no int."""
    if hint is Any:
        return True
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(
            fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items()
        )
    if hint is float:
        return type(value) in (int, float)
    if hint in (bool, int, str, type(None)):
        return type(value) is hint
    return isinstance(value, hint)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
