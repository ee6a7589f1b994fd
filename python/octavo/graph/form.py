"""What a module consists of: names and classes of all that is inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from octavo.nn.decomposed.decompose import name_in_files
from octavo.nn.layer import QLayer
from octavo.nn.registry import is_batch_norm

__all__ = ["ADDED", "Form", "form_of", "inner_modules", "is_form"]

Form = tuple[tuple[str, str], ...]
"""Names of the module itself ("") and of all inside, and of their classes."""


def form_of(owner: nn.Module, children: Mapping[str, nn.Module | None] | None = None) -> Form:
    """Names and classes of the modules inside ``owner``, whose own table may be incomplete."""
    table = owner._modules if children is None else children
    inside = ((name, _class_name(module)) for name, module in inner_modules(owner, table))
    return (("", _class_name(owner)), *inside)


def is_form(owner: nn.Module, children: Mapping[str, nn.Module | None], form: Form) -> bool:
    """Whether the modules are those of the form; where that has an identity, BatchNorms are too."""
    now = form_of(owner, children)
    if now == form or not form:
        return True
    modules = dict(inner_modules(owner, children))
    return len(now) == len(form) and all(
        name == other and (cls == wanted or (wanted == "Identity" and is_batch_norm(modules[name])))
        for (name, cls), (other, wanted) in zip(now, form, strict=True)
    )


def inner_modules(
    owner: nn.Module, children: Mapping[str, nn.Module | None]
) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside the owner by their names in it, each once; fake-quantizers are no part."""
    seen: set[int] = {id(owner)}

    def inside(table: Mapping[str, nn.Module | None], prefix: str) -> Any:
        for name, child in table.items():
            if child is None or id(child) in seen or name in ADDED:
                continue
            seen.add(id(child))
            yield f"{prefix}{name}", child
            if not isinstance(child, torch.jit.ScriptModule):
                yield from inside(child._modules, f"{prefix}{name}.")

    yield from inside(children, "")


#: Modules that training adds to layers.
ADDED = ("value_quantizers", "weight_quantizer")


def _class_name(module: nn.Module) -> str:
    return name_in_files(module.float_class if isinstance(module, QLayer) else type(module))
