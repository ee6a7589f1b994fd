"""The compiled library: loading it, and which instruction set it uses."""

from __future__ import annotations

import difflib
import os
import re

import torch

from octavo.errors import describe
from octavo.signature import known_arguments

__all__ = ["__version__", "isa", "isas", "set_isa"]

_OLDEST_TORCH = (2, 10)


def _check_torch() -> None:
    """One message where torch is too old; the library's own complaint would be about symbols."""
    match = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST_TORCH:
        raise ImportError(
            f"octavo: expected torch >= {_OLDEST_TORCH[0]}.{_OLDEST_TORCH[1]}, "
            f"got torch {torch.__version__}. Upgrade torch."
        )


_check_torch()
try:
    # _C links to octavo_ops.so, which registers the operators as it is loaded.
    from octavo import _C
except ImportError as error:
    raise ImportError(
        f"octavo: expected the compiled library beside {__file__!r}, got: {error}. "
        "Install octavo with 'pip install .', or build in the tree: 'cmake -S . -B build && "
        "cmake --build build --target install_in_tree'."
    ) from error

__version__: str = _C.version


def isas() -> tuple[str, ...]:
    """Names of the instruction sets that this machine supports, best first.

    Example:
        >>> import octavo
        >>> "scalar" in octavo.isas()
        True
    """
    return tuple(_C.isas())


def isa() -> str:
    """Name of the instruction set in use."""
    return _C.isa()


@known_arguments
def set_isa(name: str | None = None) -> None:
    """Forces an instruction set for the process, or with None goes back to the best one.

    It changes the time that calls take, not their results. Weights are packed again at each layer's
    next call. The environment variable OCTAVO_ISA does the same at import.

    Args:
        name: one of `isas()`.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: octavo has no such instruction set.
        RuntimeError: this machine does not have it.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"set_isa: name: expected a string or None, got {describe(name)}.")
    if name == "":
        raise ValueError(_unknown("set_isa: name", name))
    result = _C.set_isa(name or "")
    if result == 1:
        raise ValueError(_unknown("set_isa: name", name or ""))
    if result == 2:
        raise RuntimeError(_unsupported("set_isa: name", name or ""))


def _unknown(where: str, name: str) -> str:
    near = difflib.get_close_matches(name, _C.compiled_isas(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{where}: expected one of {', '.join(_C.compiled_isas())}, got {describe(name)}.{hint} "
        f"This machine has {', '.join(_C.isas())}."
    )


def _unsupported(where: str, name: str) -> str:
    return (
        f"{where}: expected an instruction set that this machine has ({', '.join(_C.isas())}), "
        f"got {name!r}, which needs {_C.missing_for(name)}. Choose another one."
    )


def _obey_environment() -> None:
    result = _C.set_isa_from_environment()
    if result == 0:
        return
    name = "".join(os.environ["OCTAVO_ISA"].split()).lower()
    if result == 1:
        raise ImportError(_unknown("environment variable OCTAVO_ISA", name))
    raise RuntimeError(_unsupported("environment variable OCTAVO_ISA", name))


_obey_environment()
