"""Another function in the place of a module's forward.

It stands on the instance, so that the module keeps its class, its name and its children. Whatever
runs instead of a class's own forward is put there, and taken away again, by these functions alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

__all__ = ["replace_forward", "replaced_forwards", "replacement", "restore_forward"]


def replacement(module: nn.Module) -> Any:
    """What stands in the place of the class's own forward; None if nothing does."""
    return module.__dict__.get("forward")


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """From now on calls of the module run ``forward``."""
    module.__dict__["forward"] = forward


def restore_forward(module: nn.Module) -> None:
    """From now on calls of the module run its class's own forward."""
    module.__dict__.pop("forward", None)


@contextlib.contextmanager
def replaced_forwards() -> Iterator[Callable[[nn.Module, Callable[..., Any]], None]]:
    """Gives a `replace_forward` whose replacements end with the context.

    Whatever stood there before then stands there again.
    """
    before: list[tuple[nn.Module, Any]] = []

    def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
        before.append((module, replacement(module)))
        replace_forward(module, forward)

    try:
        yield replace
    finally:
        for module, forward in reversed(before):
            if forward is None:
                restore_forward(module)
            else:
                replace_forward(module, forward)
