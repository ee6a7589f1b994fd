"""Swin's attention within windows as torchvision has it, whose projections are layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.nn.decomposed.protocol import become, parameter_like
from octavo.nn.registry import qualified_name

__all__ = ["DecomposedWindowAttention"]

_FUSED = tuple(
    f"torchvision.models.swin_transformer.ShiftedWindowAttention{version}" for version in ("", "V2")
)


class DecomposedWindowAttention(nn.Module):
    """The same function as torchvision's ShiftedWindowAttention, of both versions.

    qkv and proj are applied to the pixels of the image alone, not to what pads it to windows.

    Attributes:
        qkv: Linear [3 * channels, channels].
        proj: Linear [channels, channels].
        fused: the class that it stands for.
    """

    qkv: nn.Module
    proj: nn.Module
    fused: type
    window_size: list[int]
    shift_size: list[int]
    num_heads: int
    attention_dropout: float
    dropout: float

    @classmethod
    def replaces(cls, module: nn.Module, training: bool) -> bool:
        """Both versions: all Parameters stay the objects that they are."""
        return qualified_name(type(module)) in _FUSED

    @staticmethod
    def take(module: nn.Module) -> None:
        """Layers are there, they are not called. Of version 2 keys have no bias."""
        qkv = module.get_submodule("qkv")
        bias = qkv._parameters.get("bias")
        if "logit_scale" in module._parameters and bias is not None:
            queries, keys, values = bias.detach().chunk(3)
            if keys.any():
                cleared = torch.cat([queries, torch.zeros_like(keys), values])
                qkv._parameters["bias"] = parameter_like(cleared, bias)
        become(module, DecomposedWindowAttention, fused=type(module))

    @staticmethod
    def give_back(module: nn.Module) -> bool:
        """If its layers are float ones."""
        if not all(type(module.get_submodule(name)) is nn.Linear for name in ("qkv", "proj")):
            return False
        module.__class__ = module.__dict__.pop("fused")
        return True

    def forward(self, x: Tensor) -> Tensor:
        """[batch, height, width, channels] to the same."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        padded = x.shape[1:3]
        # Windows that hold all there is need no shift.
        shifts = [
            0 if window >= size else shift
            for window, size, shift in zip(self.window_size, padded, self.shift_size, strict=True)
        ]
        x = self.qkv(x)
        x = x.roll([-shift for shift in shifts], (1, 2)) if any(shifts) else x
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # type: ignore[no-untyped-call]
            for part in self._windows(x).chunk(3, -1)
        )
        scale = self._parameters.get("logit_scale")
        if scale is None:
            scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * scale.clamp(max=math.log(100.0)).exp()
        fused: Any = self.fused
        scores = scores + fused.get_relative_position_bias(self)
        if any(shifts):
            scores = scores + self._apart(padded, shifts, x)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        y = (weights @ v).transpose(-3, -2).flatten(-2)
        y = self._image(y, padded)
        y = y.roll(shifts, (1, 2)) if any(shifts) else y
        y = self.proj(y[:, :height, :width].contiguous())
        return F.dropout(y, self.dropout, self.training)

    def _windows(self, x: Tensor) -> Tensor:
        """[batch, height, width, c] to [batch, windows, pixels, c]."""
        batch, height, width, channels = x.shape
        rows, columns = self.window_size
        x = x.view(batch, height // rows, rows, width // columns, columns, channels)
        return x.transpose(2, 3).reshape(batch, -1, rows * columns, channels)

    def _image(self, x: Tensor, size: torch.Size) -> Tensor:
        """What `_windows` has cut, together again."""
        rows, columns = self.window_size
        down, across = size[0] // rows, size[1] // columns
        x = x.view(-1, down, across, rows, columns, x.shape[-1])
        return x.transpose(2, 3).reshape(-1, *size, x.shape[-1])

    def _apart(self, size: torch.Size, shifts: list[int], like: Tensor) -> Tensor:
        """-100 between pixels that the shift has brought from different sides into one window.

        [windows, 1, pixels, pixels]
        """
        sides = [
            (torch.arange(n) >= n - window).int() + (torch.arange(n) >= n - shift).int()
            for n, window, shift in zip(size, self.window_size, shifts, strict=True)
        ]
        side = self._windows((3 * sides[0][:, None] + sides[1]).view(1, *size, 1))[0]
        different = side != side.transpose(1, 2)
        return (different * -100.0).to(like.dtype).unsqueeze(1)
