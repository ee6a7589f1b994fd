"""What those who write and those who read octavo's files agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from octavo.nn.state import read_range
from octavo.numerics.scheme import QParams

__all__ = ["FORMAT_VERSION", "file_name", "join", "range_from_data", "range_to_data", "tensors_of"]

FORMAT_VERSION = (1, 2)


def range_to_data(p: QParams) -> list[Any]:
    """The range of an activation as JSON data: its scale as text, so that no bit is lost."""
    return [p.scale.hex(), p.zero_point, p.bits]


def range_from_data(data: Any, name: str) -> QParams:
    """The inverse of `range_to_data`; StateError, which names ``name``, if it is no range."""
    text, zero_point, bits = data
    return read_range(float.fromhex(text), zero_point, bits, name)


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module itself that a file holds, by their names."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def join(path: str, name: str) -> str:
    """The name in the whole model of what a module calls ``name``."""
    return f"{path}.{name}" if path else name


def file_name(name: str) -> str:
    """A name without the characters that a path could need."""
    return name.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
