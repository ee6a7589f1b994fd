"""Public calls answer an argument that they do not have with the nearest name that they have.

Python says so from 3.13 on, for some calls. Here every version says it, in the form of octavo's
messages, and the signature stays what tools and type checkers read.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

__all__ = ["RENAMED", "check_names", "known_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {"method": "qat_method", "only": "include"}
"""Arguments that had another name: the old one is answered with the new one."""


def known_arguments(call: Callable[P, R]) -> Callable[P, R]:
    """``call``, which answers an unknown keyword argument with the nearest name."""
    where = call.__qualname__.removesuffix(".__init__")
    known = [name for name in inspect.signature(call).parameters if name != "self"]

    @functools.wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_names(where, kwargs, known)
        return call(*args, **kwargs)

    return checked


def check_names(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """TypeError for the first name that is not known."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        near = [RENAMED[name]] if RENAMED.get(name) in known else []
        near = near or difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"See help(octavo.{where})."
        raise TypeError(f"{where}: expected a known argument, got {name!r}. {hint}")
