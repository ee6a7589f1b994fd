"""QLinear: y = x W^T + b with integer products."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from octavo import ops
from octavo.nn import registry
from octavo.nn.layer import QLayer
from octavo.ops.region_program import Program, line_of
from octavo.ops.region_steps import LINEAR_F32, QUANTIZE

__all__ = ["QLinear"]

_TRANSPOSED = "transformers.pytorch_utils.Conv1D"


def _is_transposed(cls: type) -> bool:
    return any(registry.qualified_name(base) == _TRANSPOSED for base in cls.__mro__)


@registry.register("torch.nn.modules.linear.Linear", _TRANSPOSED)
class QLinear(QLayer):
    """Stands for nn.Linear, and for transformers' Conv1D, whose weight is [in, out].

    Input [..., in_features] of any floating type and strides; output of the same type, computed in
    float32. Each row has its own scale where activations are dynamic.
    """

    in_features: int
    out_features: int

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x = self._float32(input)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self._where()}: expected input of shape [..., {self.in_features}], "
                f"got {list(x.shape)}. Check the layer before it."
            )
        p = self.input_params
        if self.packed:
            panel = self.current_panel()
            if p is None:
                how = "float" if self.activations == "float" else "dynamic"
                y = ops.linear_lowbit(x, panel, self.out_features, how)
            else:
                y = ops.linear_lowbit_static(
                    x, panel, self.out_features, p.scale, p.zero_point, p.qmax
                )
        elif p is None:
            y = ops.linear_dynamic(x, self.current_panel(), self.out_features)
        else:
            panel, program, constants = self.prepare()
            y = ops.run_region([x], [panel], constants, program)[0]
        return y if input.dtype is torch.float32 else y.to(input.dtype)

    @staticmethod
    def canonical_weight(module: nn.Module) -> Tensor:
        """The weight of a float layer as [out, in], detached."""
        weight = QLayer.canonical_weight(module)
        return weight.t() if _is_transposed(type(module)) else weight

    @staticmethod
    def channel_axis(module: nn.Module) -> int:
        """0, or 1 where the weight is [in, out]."""
        return 1 if _is_transposed(type(module)) else 0

    def _float_weight(self, weight: Tensor) -> Tensor:
        return weight.t().contiguous() if _is_transposed(self.float_class) else weight

    def _take_sizes(self, codes: Tensor) -> None:
        self.out_features, self.in_features = codes.shape

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return self.out_features, self.in_features

    def _program(self) -> str:
        p = self.input_params
        if p is None or self.packed:
            return ""
        entry = {"in": 0, "layout": "rows", "s": p.scale, "z": p.zero_point, "max": p.qmax}
        step = {
            "x": 0,
            "panel": 0,
            "channels": self.out_features,
            "lo": -math.inf,
            "hi": math.inf,
        }
        return Program((line_of(QUANTIZE, entry), line_of(LINEAR_F32, step)), (1,)).text()

    def extra_repr(self) -> str:
        """Sizes as nn.Linear shows them, then the scheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._repr_end()}"
        )
