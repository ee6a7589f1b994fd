"""Layers out of modules that compute with weights of their own, or of children they do not call.

Such weights cannot be quantized, those of layers can. `recompose` goes back.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from octavo.nn.decomposed.attention import DecomposedAttention
from octavo.nn.decomposed.experts import DecomposedExperts
from octavo.nn.decomposed.protocol import Decomposed, has_class
from octavo.nn.decomposed.recurrent import ROWS as RECURRENT
from octavo.nn.decomposed.window_attention import DecomposedWindowAttention
from octavo.nn.registry import DECOMPOSED, qualified_name

__all__ = ["BORDERS", "decompose", "is_decomposable", "name_in_files", "recompose"]

_ROWS: tuple[type[Decomposed], ...] = (
    DecomposedAttention,
    DecomposedWindowAttention,
    DecomposedExperts,
    *RECURRENT,
)
#: Modules whose forwards depend on data or on the number of steps: nothing captures through them.
BORDERS: tuple[type[nn.Module], ...] = (*RECURRENT, DecomposedExperts)
_CLASSES: dict[type, type[Decomposed]] = {row: row for row in _ROWS}

#: Switches of fast paths in evaluation mode, which read children's weights, and what is off.
_SWITCHES: dict[str, tuple[str, Any]] = {
    "torch.nn.modules.transformer.TransformerEncoderLayer": ("activation_relu_or_gelu", 0),
    "torch.nn.modules.transformer.TransformerEncoder": ("use_nested_tensor", False),
}


def decompose(model: nn.Module, training: bool = False) -> nn.Module:
    """``model``, its modules changed in place (`recompose` undoes it).

    Args:
        model: any module.
        training: keep every Parameter the object that it is; experts stay fused then.
    """
    for module in list(model.modules()):
        row, switch = _row(module, training), _switch(module)
        if row is not None:
            row.take(module)
        elif switch is not None:
            name, off = switch
            module.__dict__[DECOMPOSED] = {name: module.__dict__[name]}
            module.__dict__[name] = off
    return model


def is_decomposable(model: nn.Module) -> bool:
    """Whether `decompose` would change anything."""
    return any(_row(m, training=False) or _switch(m) for m in model.modules())


def recompose(model: nn.Module) -> nn.Module:
    """``model`` with the classes it had before `decompose`, where what they hold allows it."""
    for module in reversed(list(model.modules())):
        before = module.__dict__.get(DECOMPOSED)
        if before is None:
            continue
        row = _CLASSES.get(type(module))
        below = (child for child in module.modules() if child is not module)
        done = row.give_back(module) if row else not any(DECOMPOSED in m.__dict__ for m in below)
        if done:
            del module.__dict__[DECOMPOSED]
            module.__dict__.update(before)
    return model


def _row(module: nn.Module, training: bool) -> type[Decomposed] | None:
    if DECOMPOSED in module.__dict__ or "forward" in module.__dict__:
        return None
    return next((row for row in _ROWS if row.replaces(module, training)), None)


def _switch(module: nn.Module) -> tuple[str, Any] | None:
    """By classes that inherit the forward too; a switch that is off already needs nothing."""
    if DECOMPOSED in module.__dict__:
        return None
    for base in type(module).__mro__:
        name, off = _SWITCHES.get(qualified_name(base), ("", None))
        if name in module.__dict__:
            return (name, off) if has_class(module, base) else None
    return None


def name_in_files(cls: type[nn.Module]) -> str:
    """What files call a module's class: its name.

    Files call decomposed classes `Layered...`, their names in earlier versions.
    """
    ours = cls.__module__.startswith("octavo.nn.decomposed.")
    return cls.__name__.replace("Decomposed", "Layered", 1) if ours else cls.__name__
