"""QConv1d and QConv2d: convolutions with integer products, each run as a region of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo import ops
from octavo.nn import registry
from octavo.nn.layer import QLayer
from octavo.ops.region_program import Program, line_of
from octavo.ops.region_steps import CONV_DYNAMIC, CONV_F32, QUANTIZE, QUANTIZE_DYNAMIC

__all__ = ["QConv1d", "QConv2d"]


class _QConv(QLayer):
    """What one and two dimensions share. Attributes are those of torch's convolutions."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    family = "convolution"

    def forward(self, input: Tensor) -> Tensor:
        """[N, in_channels, ...] to [N, out_channels, ...]; N may be left out."""
        x = self._float32(input)
        dims = len(self.kernel_size)
        if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != self.in_channels:
            sizes = ", ".join(["L"] if dims == 1 else ["H", "W"])
            raise ValueError(
                f"{self._where()}: expected input of shape [N, {self.in_channels}, {sizes}] or "
                f"[{self.in_channels}, {sizes}], got {list(x.shape)}. Check the layer before it."
            )
        batched = x.dim() == dims + 2
        if not batched:
            x = x.unsqueeze(0)
        pads = self.pads()
        self._check_window(x, pads)
        if self.padding_mode != "zeros":
            # Copies of values have the range of the values: padding before quantizing gives the
            # same codes.
            sides = [side for pair in reversed(pads) for side in pair]
            last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            keep = (
                torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
            )
            x = F.pad(x, sides, self.padding_mode).contiguous(memory_format=keep)
        if self.activations == "float":
            y = self._in_float(x)
        else:
            panel, program, constants = self.prepare()
            y = ops.run_region([x], [panel], constants, program)[0]
        if not batched:
            y = y.squeeze(0)
        return y if input.dtype is torch.float32 else y.to(input.dtype)

    @staticmethod
    def window(module: nn.Module) -> tuple[int, ...]:
        """The kernel's sizes."""
        size = module.kernel_size
        assert isinstance(size, tuple)
        return size

    @staticmethod
    def channel_groups(module: nn.Module) -> int:
        """The convolution's groups."""
        groups = module.groups
        assert isinstance(groups, int)
        return groups

    @staticmethod
    def call_canonical(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Torch's convolution, padding mode included."""
        assert isinstance(module, nn.modules.conv._ConvNd)
        return module._conv_forward(x, weight, bias)

    @staticmethod
    def input_rows(module: nn.Module, x: Tensor) -> Tensor:
        """Patches of the padded images [N, C, ...], group by group."""
        assert isinstance(module, nn.modules.conv._ConvNd)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
        if x.dim() == 3:
            x = x.unsqueeze(2)
            kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
        columns = F.unfold(x, kernel, dilation, 0, stride)
        n, _, length = columns.shape
        columns = columns.view(n, module.groups, -1, length)
        return columns.permute(1, 0, 3, 2).reshape(module.groups, n * length, -1)

    def _in_float(self, x: Tensor) -> Tensor:
        """Like torch's convolution, with a weight that lives for this call only."""
        pads = self.pads() if self.padding_mode == "zeros" else [(0, 0)] * len(self.kernel_size)
        if any(before != after for before, after in pads):
            x = F.pad(x, [side for pair in reversed(pads) for side in pair])
            pads = [(0, 0)] * len(pads)
        convolution = F.conv1d if len(self.kernel_size) == 1 else F.conv2d
        y: Tensor = convolution(
            x,
            self.weight,
            self.bias,
            self.stride,
            [before for before, _ in pads],
            self.dilation,
            self.groups,
        )
        return y

    def pads(self) -> list[tuple[int, int]]:
        """Padding before and after each spatial dimension."""
        if self.padding == "valid":
            return [(0, 0)] * len(self.kernel_size)
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        return [(int(p), int(p)) for p in self.padding]

    def _check_window(self, x: Tensor, pads: Sequence[tuple[int, int]]) -> None:
        for size, kernel, dilation, (before, after) in zip(
            x.shape[2:], self.kernel_size, self.dilation, pads, strict=True
        ):
            reach = dilation * (kernel - 1) + 1
            if size + before + after < reach:
                raise ValueError(
                    f"{self._where()}: expected a padded input of at least {reach} "
                    f"for kernel {kernel} and dilation {dilation}, "
                    f"got {size} + {before} + {after}. Use a larger input."
                )

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, I / groups, kernel ...)."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _program(self) -> str:
        if self.activations == "float":
            return ""
        two = len(self.kernel_size) == 2

        def pair(values: Sequence[int]) -> Sequence[int]:
            return values if two else (1, *values)

        sides = self.pads() if self.padding_mode == "zeros" else [(0, 0)] * len(self.kernel_size)
        if not two:
            sides = [(0, 0), *sides]
        (top, bottom), (left, right) = sides
        entry: dict[str, object] = {"in": 0, "layout": "image" if two else "image1d", "max": 255}
        step = {
            "x": 0,
            "panel": 0,
            "channels": self.out_channels,
            "kernel": pair(self.kernel_size),
            "stride": pair(self.stride),
            "pad": (top, left, bottom, right),
            "dilation": pair(self.dilation),
        }
        p = self.input_params
        if p is None:
            lines = line_of(QUANTIZE_DYNAMIC, entry), line_of(CONV_DYNAMIC, step)
        else:
            entry |= {"s": p.scale, "z": p.zero_point, "max": p.qmax}
            lines = (
                line_of(QUANTIZE, entry),
                line_of(CONV_F32, {**step, "lo": -math.inf, "hi": math.inf}),
            )
        return Program(lines, (1,)).text()

    def extra_repr(self) -> str:
        """Sizes as torch's convolutions show them, then the scheme."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding not in ((0,), (0, 0)):
            parts.append(f"padding={self.padding}")
        if any(d != 1 for d in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join([*parts, self._repr_end()])


@registry.register("torch.nn.modules.conv.Conv1d")
class QConv1d(_QConv):
    """Stands for nn.Conv1d: [N, C, L] or [C, L]. One scale a sample where dynamic."""


@registry.register("torch.nn.modules.conv.Conv2d")
class QConv2d(_QConv):
    """Stands for nn.Conv2d: [N, C, H, W] or [C, H, W]. One scale a sample where dynamic."""
