"""QEmbedding: rows of a table that stays in few bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo import ops
from octavo.nn import registry
from octavo.nn.layer import QLayer

__all__ = ["QEmbedding"]


@registry.register("torch.nn.modules.sparse.Embedding")
class QEmbedding(QLayer):
    """Stands for nn.Embedding: integers of any shape to float32 [..., embedding_dim].

    Activations are float: a look-up has none to quantize. The result has no gradient, as nothing
    that it depends on has one.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    family = "embedding"
    looks_up = True

    def forward(self, input: Tensor) -> Tensor:
        """[...] to [..., embedding_dim]."""
        if not isinstance(input, Tensor):
            raise TypeError(
                f"{self._where()}: expected a tensor of indices, got {type(input).__name__}. "
                "Convert with torch.as_tensor."
            )
        if input.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                f"{self._where()}: expected indices of int64 or int32, got {input.dtype}. "
                "Call .long() on them."
            )
        return ops.embedding_lowbit(input.long(), self.current_panel(), self.embedding_dim)

    @staticmethod
    def call_canonical(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Rows of ``weight``."""
        padding = module.padding_idx
        assert padding is None or isinstance(padding, int)
        return F.embedding(x, weight, padding)

    @staticmethod
    def reason_in_training(module: nn.Module) -> str:
        """Not a whole table is trained where gradients are sparse or max_norm changes rows."""
        if module.sparse or module.max_norm:
            return "training: sparse gradients and max_norm change few rows only"
        return ""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(num_embeddings, embedding_dim)."""
        return self.num_embeddings, self.embedding_dim

    def _take_sizes(self, codes: Tensor) -> None:
        self.activations, self.packed = "float", True

    def _program(self) -> str:
        return ""

    def extra_repr(self) -> str:
        """Sizes as nn.Embedding shows them, then the scheme."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self._repr_end()}"
