"""Look-ups in packed 2..8-bit tables."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["embedding_lowbit"]


def embedding_lowbit(indices: Tensor, packed: Tensor, features: int) -> Tensor:
    """float32 [..., features]: rows of the table, level times scale.

    Args:
        indices: int64 of any shape, each below the number of rows.
        packed: what ``pack_lowbit(..., rows=True)`` made of the table [rows, features].
        features: columns of the table.

    Raises:
        TypeError: ``indices`` are not int64.
        RuntimeError: an index outside the table.
    """
    checks.check_dtype(indices, torch.int64, "embedding_lowbit: indices")
    result: Tensor = torch.ops.octavo.embedding_lowbit(indices, packed, features)
    return result


@checks.register_fake("octavo::embedding_lowbit")
def _(indices: Tensor, packed: Tensor, features: int) -> Tensor:
    return indices.new_empty((*indices.shape, features), dtype=torch.float32)
