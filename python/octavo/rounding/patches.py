"""Inputs of layers as rows of a matrix product: patches of images, group by group."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.rounding.quadratic import Moments

__all__ = ["moments_of", "patches"]

_ROWS = 1 << 16  # Rows that second moments are taken of, at most (and 16 for each weight).
_IMAGES = 8  # Unfolded at once, at most,
_VALUES = 1 << 22  # and so many values, unless one image alone has more.


def moments_of(module: nn.Module, inputs: list[Tensor], targets: list[Tensor]) -> Moments:
    """Moments of the layer's input rows and output rows; positions are drawn if there are many."""
    moments = Moments()
    generator = torch.Generator().manual_seed(0)
    positions = sum(y.numel() // max(channels_of(module, y), 1) for y in targets)
    for pair in zip(inputs, targets, strict=True):
        # The batch dimension may be left out.
        x, y = (t if t.dim() >= 2 + _spatial(module) else t.unsqueeze(0) for t in pair)
        each = max(x[:1].numel() * _taps(module), 1)
        images = min(max(_VALUES // each, 1), _IMAGES)
        for part_x, part_y in zip(torch.split(x, images), torch.split(y, images), strict=True):
            rows_x, rows_y = patches(module, part_x.float()), _rows(module, part_y.float())
            wanted = max(_ROWS, 16 * rows_x.shape[2])
            if positions > wanted:
                count = -(-rows_x.shape[1] * wanted // positions)
                drawn = torch.randperm(rows_x.shape[1], generator=generator)[:count]
                rows_x, rows_y = rows_x[:, drawn], rows_y[:, drawn]
            moments.add(rows_x, rows_y)
    return moments


def channels_of(module: nn.Module, y: Tensor) -> int:
    """Output channels."""
    return y.shape[y.dim() - 1 - _spatial(module)]


def _spatial(module: nn.Module) -> int:
    return len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0


def _taps(module: nn.Module) -> int:
    if not isinstance(module, nn.modules.conv._ConvNd):
        return 1
    return math.prod(module.kernel_size)


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """[groups, N, K]: what each output position multiplies with the weights, in their order."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return x.reshape(1, -1, x.shape[-1])
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


def _rows(module: nn.Module, y: Tensor) -> Tensor:
    """[groups, N, R]: the outputs in the order of `patches`."""
    groups = int(getattr(module, "groups", 1))
    spatial = _spatial(module)
    rows = y.movedim(1, -1) if spatial else y
    rows = rows.reshape(-1, groups, rows.shape[-1] // groups)
    return rows.permute(1, 0, 2)
