"""What the rest of octavo has to know of a float layer, told by the class that quantizes it.

Nobody outside of ``nn`` asks for the type of a layer: it asks the class that is registered for it,
`octavo.nn.registry.facts_of`. Each fact has a default, which is right for a layer like nn.Linear.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LayerFacts", "layer_bias"]


def layer_bias(module: nn.Module) -> Tensor | None:
    """What a float layer adds: a Parameter, a buffer or a plain tensor; None without."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


class LayerFacts:
    """Facts about a float layer. They are asked of the class, with the float layer at hand.

    "Canonical" is torch's order of a weight, [O, I / groups, window ...], whatever the order that
    the float class keeps it in.

    Attributes:
        family: what its weights count as: one of `octavo.nn.registry.FAMILIES`. A "convolution" has
            the attributes of torch's convolutions.
        looks_up: whether it reads rows of its weight by their numbers. It then has no activations
            to quantize and no bias, and its rows are rounded without data.
    """

    family = "linear"
    looks_up = False

    @staticmethod
    def canonical_weight(module: nn.Module) -> Tensor:
        """The weight in canonical order, detached."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @staticmethod
    def channel_axis(module: nn.Module) -> int:
        """The dimension of the layer's own weight that holds output channels."""
        return 0

    @staticmethod
    def window(module: nn.Module) -> tuple[int, ...]:
        """Sizes of the window that slides over its input, () where the input has rows."""
        return ()

    @staticmethod
    def channel_groups(module: nn.Module) -> int:
        """Groups of channels that are computed apart from each other."""
        return 1

    @staticmethod
    def call_canonical(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's arithmetic with another weight, which is canonical, and another bias."""
        return F.linear(x, weight, bias)

    @classmethod
    def call_float(cls, module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own result for ``x`` with another weight, which is in the layer's order."""
        axis = cls.channel_axis(module)
        canonical = weight.movedim(axis, 0) if axis else weight
        return cls.call_canonical(module, x, canonical, layer_bias(module))

    @staticmethod
    def input_rows(module: nn.Module, x: Tensor) -> Tensor:
        """[groups, N, K]: what each output position multiplies with the weights, in their order."""
        return x.reshape(1, -1, x.shape[-1])

    @staticmethod
    def reason_in_training(module: nn.Module) -> str:
        """Why the layer stays float in a trainee, "" where its weight can be trained."""
        return ""
