"""What takes the place of a module that computes with weights without calling a layer.

Such a module keeps its object, its hooks and its Parameters; its class becomes a `Decomposed` one,
which calls layers for the same function. `octavo.nn.decomposed.decompose` goes through a model.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from octavo.nn.registry import DECOMPOSED

__all__ = ["Decomposed", "become", "has_class", "linear_of", "parameter_like", "weight_and_bias"]


class Decomposed(Protocol):
    """A row of `octavo.nn.decomposed.decompose`."""

    @classmethod
    def replaces(cls, module: nn.Module, training: bool) -> bool:
        """Whether ``module`` can become one; if training, with every Parameter it has."""
        ...

    @staticmethod
    def take(module: nn.Module) -> None:
        """Makes ``module`` one, in place."""

    @staticmethod
    def give_back(module: nn.Module) -> bool:
        """Makes ``module`` what it was, in place, if what it holds allows it."""


def has_class(module: nn.Module, cls: type) -> bool:
    """Whether the class of ``module`` is ``cls``, all but for its name, and runs its forward."""
    if not isinstance(module, cls) or hasattr(module, "parametrizations"):
        return False
    return type(module).forward is getattr(cls, "forward", None)


def become(module: nn.Module, cls: type[nn.Module], **attributes: Any) -> None:
    """Changes the class, and notes that it was changed."""
    module.__dict__.update(attributes)
    module.__dict__[DECOMPOSED] = {}
    module.__class__ = cls


def weight_and_bias(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None]:
    """The Parameters of a Linear."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight, layer._parameters.get("bias")


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A Linear of these very Parameters."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.out_features, layer.in_features = weight.shape
    layer._parameters.update(weight=weight, bias=bias)
    return layer


def parameter_like(value: Tensor, like: Tensor) -> nn.Parameter:
    """A Parameter of the type of ``like`` that is trained if that is."""
    return nn.Parameter(value.to(like.dtype), requires_grad=like.requires_grad)
