"""Which float class becomes which quantized class, and why a layer stays float.

Rows are qualified type names, so that classes of other packages (transformers' Conv1D) need no
import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from octavo.nn.layer import QLayer

__all__ = [
    "WEIGHT_READERS",
    "canonical_weight",
    "float_reasons",
    "is_depthwise",
    "quantized_class",
    "register",
]

#: Qualified name of a float class to its quantized class.
_ROWS: dict[str, type[QLayer]] = {}

#: Modules that read the weights of these children instead of calling them. The children stay float.
WEIGHT_READERS: dict[str, tuple[str, ...]] = {
    "torch.nn.modules.activation.MultiheadAttention": ("out_proj",),
    "torch.nn.modules.transformer.TransformerEncoderLayer": ("linear1", "linear2"),
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ("qkv", "proj"),
}

#: Where a module's dict holds this, it calls its children after all
#: (`octavo.nn.decomposed.decompose.decompose`).
DECOMPOSED = "_octavo_before"

_Class = TypeVar("_Class", bound="type[QLayer]")


def register(*float_types: str) -> Callable[[_Class], _Class]:
    """Returns a decorator that makes a quantized class the row of these qualified float types."""

    def add(quantized: _Class) -> _Class:
        for name in float_types:
            _ROWS[name] = quantized
        return quantized

    return add


def qualified_name(cls: type) -> str:
    """``module.qualname`` of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _registered_base(cls: type) -> type | None:
    return next((base for base in cls.__mro__ if qualified_name(base) in _ROWS), None)


def quantized_class(module: nn.Module) -> tuple[type[QLayer] | None, str]:
    """The class that replaces ``module``, or None and the reason why it stays float.

    A subclass is replaced only if it runs the registered class's own ``forward``: another forward
    may use the weight in a way that the quantized class does not know.
    """
    cls = type(module)
    base = _registered_base(cls)
    if base is None:
        return None, f"{cls.__name__} has no integer form"
    if cls.__name__ == "NonDynamicallyQuantizableLinear":
        return None, "nn.MultiheadAttention reads its weight instead of calling it"
    if "forward" in module.__dict__:
        return None, "its forward is replaced on the instance"
    for method in ("forward", "_conv_forward"):
        if getattr(cls, method, None) is not getattr(base, method, None):
            return None, f"{cls.__name__} has its own {method}"
    if getattr(module, "max_norm", None) is not None:
        return None, "its max_norm changes the weight while it runs"
    if any(True for _ in module.children()) and not hasattr(module, "parametrizations"):
        return None, f"{cls.__name__} has children of its own"
    return _ROWS[qualified_name(base)], ""


def float_reasons(model: nn.Module) -> dict[str, str]:
    """For every module that owns parameters: "" if it can be quantized, else why not.

    Names are those of ``model.named_modules()``: a module that stands in several places appears
    once.
    """
    read_by_parent: dict[int, str] = {}
    for parent in model.modules():
        if DECOMPOSED in parent.__dict__:
            continue
        for base in type(parent).__mro__:
            for child in WEIGHT_READERS.get(qualified_name(base), ()):
                if isinstance(getattr(parent, child, None), nn.Module):
                    read_by_parent[id(getattr(parent, child))] = (
                        f"{type(parent).__name__} reads its weight instead of calling it"
                    )
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            reason = read_by_parent.get(id(module), "")
            reasons[name] = reason or quantized_class(module)[1]
    return reasons


def layer_bias(module: nn.Module) -> Tensor | None:
    """What a float layer adds: a Parameter, a buffer or a plain tensor; None without."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def canonical_weight(module: nn.Module) -> Tensor:
    """The float weight of a layer in torch's order: [O, I / groups, kernel ...], detached."""
    quantized, reason = quantized_class(module)
    if quantized is None:
        raise ValueError(f"canonical_weight: expected a layer with an integer form, got {reason}.")
    return quantized.canonical_weight(module)


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution that reads each channel alone."""
    return isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels
