"""Inputs and outputs of layers as rows of a matrix product, and the moments of these rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from octavo.nn.registry import facts_of
from octavo.rounding.quadratic import Moments

__all__ = ["moments_of"]

_ROWS = 1 << 16  # Rows that second moments are taken of, at most (and 16 for each weight).
_IMAGES = 8  # Unfolded at once, at most,
_VALUES = 1 << 22  # and so many values, unless one image alone has more.


def moments_of(module: nn.Module, inputs: list[Tensor], targets: list[Tensor]) -> Moments:
    """Moments of the layer's input rows and output rows; positions are drawn if there are many."""
    moments, facts = Moments(), facts_of(module)
    window = facts.window(module)
    generator = torch.Generator().manual_seed(0)
    positions = sum(y.numel() // max(y.shape[-1 - len(window)], 1) for y in targets)
    for pair in zip(inputs, targets, strict=True):
        # The batch dimension may be left out.
        x, y = (t if t.dim() >= 2 + len(window) else t.unsqueeze(0) for t in pair)
        each = max(x[:1].numel() * math.prod(window), 1)
        images = min(max(_VALUES // each, 1), _IMAGES)
        for part_x, part_y in zip(torch.split(x, images), torch.split(y, images), strict=True):
            rows_x = facts.input_rows(module, part_x.float())
            rows_y = _output_rows(module, part_y.float())
            wanted = max(_ROWS, 16 * rows_x.shape[2])
            if positions > wanted:
                count = -(-rows_x.shape[1] * wanted // positions)
                drawn = torch.randperm(rows_x.shape[1], generator=generator)[:count]
                rows_x, rows_y = rows_x[:, drawn], rows_y[:, drawn]
            moments.add(rows_x, rows_y)
    return moments


def _output_rows(module: nn.Module, y: Tensor) -> Tensor:
    """[groups, N, R]: the outputs in the order of `LayerFacts.input_rows`."""
    facts = facts_of(module)
    groups = facts.channel_groups(module)
    rows = y.movedim(1, -1) if facts.window(module) else y
    rows = rows.reshape(-1, groups, rows.shape[-1] // groups)
    return rows.permute(1, 0, 2)
