"""Layers out of modules that compute with weights of their own, or of children they do not call.

Such weights cannot be quantized, those of layers can. `rejoin` goes back.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from octavo.nn.decomposed.attention import LayeredAttention
from octavo.nn.decomposed.experts import LayeredExperts
from octavo.nn.decomposed.protocol import Layered, has_class
from octavo.nn.decomposed.recurrent import ROWS as RECURRENT
from octavo.nn.decomposed.window_attention import LayeredWindowAttention
from octavo.nn.registry import SEPARATED, qualified_name

__all__ = ["is_separable", "rejoin", "separate"]

_ROWS: tuple[type[Layered], ...] = (
    LayeredAttention,
    LayeredWindowAttention,
    LayeredExperts,
    *RECURRENT,
)
_CLASSES: dict[type, type[Layered]] = {row: row for row in _ROWS}

#: Switches of fast paths in evaluation mode, which read children's weights, and what is off.
_SWITCHES: dict[str, tuple[str, Any]] = {
    "torch.nn.modules.transformer.TransformerEncoderLayer": ("activation_relu_or_gelu", 0),
    "torch.nn.modules.transformer.TransformerEncoder": ("use_nested_tensor", False),
}


def separate(model: nn.Module, training: bool = False) -> nn.Module:
    """``model``, its modules changed in place (`rejoin` undoes it).

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
            module.__dict__[SEPARATED] = {name: module.__dict__[name]}
            module.__dict__[name] = off
    return model


def is_separable(model: nn.Module) -> bool:
    """Whether `separate` would change anything."""
    return any(_row(m, training=False) or _switch(m) for m in model.modules())


def rejoin(model: nn.Module) -> nn.Module:
    """``model`` with the classes it had before `separate`, where what they hold allows it."""
    for module in reversed(list(model.modules())):
        before = module.__dict__.get(SEPARATED)
        if before is None:
            continue
        row = _CLASSES.get(type(module))
        below = (child for child in module.modules() if child is not module)
        done = row.give_back(module) if row else not any(SEPARATED in m.__dict__ for m in below)
        if done:
            del module.__dict__[SEPARATED]
            module.__dict__.update(before)
    return model


def _row(module: nn.Module, training: bool) -> type[Layered] | None:
    if SEPARATED in module.__dict__ or "forward" in module.__dict__:
        return None
    return next((row for row in _ROWS if row.replaces(module, training)), None)


def _switch(module: nn.Module) -> tuple[str, Any] | None:
    """By classes that inherit the forward too; a switch that is off already needs nothing."""
    if SEPARATED in module.__dict__:
        return None
    for base in type(module).__mro__:
        name, off = _SWITCHES.get(qualified_name(base), ("", None))
        if name in module.__dict__:
            return (name, off) if has_class(module, base) else None
    return None
