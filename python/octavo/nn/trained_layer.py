"""The forward of a layer whose weight is fake-quantized while the layer is trained.

It is a callable in ``module.__dict__["forward"]``, so that the module keeps its class, its name and
its Parameters.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

from torch import Tensor, nn

from octavo import ops
from octavo.nn.fake_quantize import FakeQuantize, FakeQuantizeWeight
from octavo.nn.fake_quantize_dynamic import FakeQuantizeDynamic
from octavo.nn.forwards import replacement
from octavo.nn.layer import QLayer

__all__ = ["GONE", "OwnedForward", "TrainedLayer", "trained_layer"]

GONE = (
    "forward: expected the module that it belongs to, got one that is gone. Keep the module itself."
)


def trained_layer(module: nn.Module) -> TrainedLayer | None:
    """What stands for the forward of a trainee's layer, None for any other module."""
    forward = replacement(module)
    return forward if isinstance(forward, TrainedLayer) else None


class OwnedForward:
    """A forward that belongs to one module, held weakly: the module holds it."""

    def __init__(self, owner: nn.Module) -> None:
        self._attach(owner)

    def _attach(self, owner: nn.Module) -> None:
        self._owner = weakref.ref(owner)
        self.__signature__ = inspect.signature(type(owner).forward.__get__(owner))

    def owner(self) -> nn.Module:
        """The module whose forward this is."""
        owner = self._owner()
        if owner is None:
            raise RuntimeError(GONE)
        return owner


class TrainedLayer(OwnedForward):
    """The forward of a layer whose weight is fake-quantized.

    Args:
        owner: the float layer, with a ``weight_quantizer``.
        quantized: the class that computes it in integers, which knows how to call it in float.
        source: fake-quantizer of its input, None where only the weight is quantized.
    """

    def __init__(
        self,
        owner: nn.Module,
        quantized: type[QLayer],
        source: FakeQuantize | FakeQuantizeDynamic | None,
    ) -> None:
        super().__init__(owner)
        self.quantized, self.source = quantized, source

    def weight(self) -> Tensor:
        """The fake-quantized weight, as it is now."""
        owner = self.owner()
        quantizer = owner.weight_quantizer
        assert isinstance(quantizer, FakeQuantizeWeight)
        weight: Tensor = quantizer(owner.weight)
        return weight

    def __call__(
        self, input: Tensor, quantized: bool = False, weight: Tensor | None = None
    ) -> Tensor:
        """The layer's result.

        Args:
            input: any shape that the float layer takes.
            quantized: whether ``input`` is what a fake-quantizer gave.
            weight: the result of `weight`, where several calls share it; None: computed here.
        """
        shared = weight is not None
        weight = self.weight() if weight is None else weight
        if isinstance(self.source, FakeQuantizeDynamic):
            # Samples are the rows of a linear layer, the images of a convolution.
            sample = weight.dim() - 1
            lead = input.shape[: max(input.dim() - sample, 0)]
            samples = self.source(input.reshape(-1, *input.shape[len(lead) :]))
            y = self._call(samples, weight, shared)
            return y.reshape(*lead, *y.shape[1:])
        if not quantized and self.source is not None:
            input = self.source(input)
        return self._call(input, weight, shared)

    def _call(self, input: Tensor, weight: Tensor, shared: bool) -> Tensor:
        owner = self.owner()
        # A weight that many calls share is held once: as codes it would be computed again for each.
        with ops.saved_as_codes(input) if shared else ops.saved_as_codes(input, weight):
            return self.quantized.call_float(owner, input, weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedLayer:
        owner = self.owner()
        twin = TrainedLayer(memo.get(id(owner), owner), self.quantized, None)
        twin.source = copy.deepcopy(self.source, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"owner": self.owner(), "quantized": self.quantized, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.quantized, self.source = state["quantized"], state["source"]
        self._attach(state["owner"])

    def __repr__(self) -> str:
        return f"TrainedLayer({self.quantized.__name__})"
