"""Which float class becomes which quantized class, why a layer stays float, what is known of it.

Facts about a layer are told by the class that is registered for its class or for the nearest base
(`octavo.nn.facts.LayerFacts`), whether or not this very layer can be replaced.

Rows are qualified type names, so that classes of other packages (transformers' Conv1D) need no
import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from torch import Tensor, nn

from octavo.nn.facts import LayerFacts, layer_bias

if TYPE_CHECKING:
    from octavo.nn.layer import QLayer

__all__ = [
    "FAMILIES",
    "FLOAT_FAMILIES",
    "WEIGHT_READERS",
    "canonical_weight",
    "facts_of",
    "family_of",
    "float_reasons",
    "holds_layer_weight",
    "is_batch_norm",
    "is_convolution",
    "is_depthwise",
    "layer_bias",
    "looks_up",
    "quantized_class",
    "register",
    "registered_class",
]

#: Qualified name of a float class to its quantized class.
_ROWS: dict[str, type[QLayer]] = {}

#: What weights can count as.
FAMILIES = ("linear", "convolution", "embedding", "recurrent", "batch norm")

#: Qualified name of a float class to its family, for classes that have no integer form.
FLOAT_FAMILIES: dict[str, str] = {
    "torch.nn.modules.conv._ConvNd": "convolution",
    "torch.nn.modules.sparse.EmbeddingBag": "embedding",
    "torch.nn.modules.rnn.RNNBase": "recurrent",
    "torch.nn.modules.rnn.RNNCellBase": "recurrent",
    "torch.nn.modules.batchnorm._BatchNorm": "batch norm",
}

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
    """Returns a decorator that makes a quantized class the row of these qualified float types.

    What the class does not say of the float layer (`octavo.nn.facts.LayerFacts`) is as for
    nn.Linear.
    """

    def add(quantized: _Class) -> _Class:
        if quantized.family not in FAMILIES:
            raise ValueError(
                f"register: {quantized.__name__}.family must be one of {', '.join(FAMILIES)}, "
                f"got {quantized.family!r}. Name the one that its weights count as."
            )
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


def canonical_weight(module: nn.Module) -> Tensor:
    """The float weight of a layer in torch's order: [O, I / groups, kernel ...], detached."""
    quantized, reason = quantized_class(module)
    if quantized is None:
        raise ValueError(f"canonical_weight: expected a layer with an integer form, got {reason}.")
    return quantized.canonical_weight(module)


# ---- facts -------------------------------------------------------------------------------------


def registered_class(module: nn.Module) -> type[QLayer] | None:
    """The class that is registered for a float layer's class or its nearest base, None without.

    Even where `quantized_class` has a reason not to replace this layer.
    """
    base = _registered_base(type(module))
    return None if base is None else _ROWS[qualified_name(base)]


def facts_of(module: nn.Module) -> type[LayerFacts]:
    """The class that tells the facts about a layer."""
    found = registered_class(module)
    if found is None:
        raise ValueError(
            f"facts_of: expected a layer of a registered class, got a {type(module).__name__}. "
            "Register a quantized class for it."
        )
    return found


def looks_up(module: nn.Module) -> bool:
    """Whether it is a registered layer that reads rows of its weight by their numbers."""
    found = registered_class(module)
    return found is not None and found.looks_up


def family_of(module: nn.Module) -> str:
    """What the weights of any module itself count as: one of `FAMILIES`, or ""."""
    family = _family_of_class(type(module))
    if family:
        return family
    # By their interface: layers like transformers' Conv1D, and attention with its projections.
    own = module._parameters
    is_linear = hasattr(module, "nf") and own.get("weight") is not None
    return "linear" if is_linear or "in_proj_weight" in own else ""


def _family_of_class(cls: type) -> str:
    for name in map(qualified_name, cls.__mro__):
        if name in _ROWS:
            return _ROWS[name].family
        if name in FLOAT_FAMILIES:
            return FLOAT_FAMILIES[name]
    return ""


def is_convolution(module: nn.Module) -> TypeGuard[nn.modules.conv._ConvNd]:
    """Whether it has what torch's convolutions of any number of dimensions have."""
    return _family_of_class(type(module)) == "convolution"


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution that reads each channel alone."""
    return is_convolution(module) and 1 < module.groups == module.in_channels


def is_batch_norm(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Whether it has what torch's BatchNorms of any number of dimensions have."""
    return _family_of_class(type(module)) == "batch norm"


def holds_layer_weight(module: nn.Module) -> bool:
    """Whether its "weight" is a layer's, by its class or because it has features like nn.Linear."""
    known = registered_class(module) is not None or is_convolution(module)
    return known or hasattr(module, "in_features")
