"""embedding_lowbit: rows of the dequantized table, any shape of indices, messages, opcheck."""

from __future__ import annotations

import pytest
import torch

from octavo import ops


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [0, 16, 64])
def test_is_a_row_of_the_table(isa: str, bits: int, group_size: int) -> None:
    for features in (1, 33, 64, 150):
        groups = ops.lowbit_groups(features, group_size)
        codes = torch.randint(0, 2**bits, (200, features), dtype=torch.uint8)
        scale = (torch.rand(200, groups) + 0.01).bfloat16().float()
        levels = torch.randint(-128, 128, (4, 2**bits), dtype=torch.int8)
        for table in (None, levels):
            packed = ops.pack_lowbit(codes, scale, bits, group_size, levels=table, rows=True)
            weight = ops.dequantize_lowbit(packed, 200, features)
            indices = torch.randint(0, 200, (3, 7))
            assert torch.equal(ops.embedding_lowbit(indices, packed, features), weight[indices])
            assert torch.equal(
                ops.embedding_lowbit(indices.t(), packed, features), weight[indices.t()]
            )
            assert ops.embedding_lowbit(torch.tensor(199), packed, features).shape == (features,)
            assert ops.embedding_lowbit(indices[:0], packed, features).shape == (0, 7, features)


def table() -> torch.Tensor:
    return ops.pack_lowbit(
        torch.zeros(9, 48, dtype=torch.uint8), torch.ones(9, 2), 3, 32, rows=True
    )


def test_messages() -> None:
    with pytest.raises(TypeError, match=r"indices: expected torch.int64, got torch.int32"):
        ops.embedding_lowbit(torch.zeros(3, dtype=torch.int32), table(), 48)
    for wrong in (9, -1):
        with pytest.raises(
            RuntimeError, match=rf"indices: expected 0\.\.8, got {wrong} at position 1"
        ):
            ops.embedding_lowbit(torch.tensor([0, wrong]), table(), 48)
    with pytest.raises(RuntimeError, match="features: expected 48, got 47"):
        ops.embedding_lowbit(torch.tensor([0]), table(), 47)
    products = ops.pack_lowbit(torch.zeros(9, 48, dtype=torch.uint8), torch.ones(9, 2), 3, 32)
    with pytest.raises(RuntimeError, match="packed for look-ups, got one for products"):
        ops.embedding_lowbit(torch.tensor([0]), products, 48)


def test_opcheck() -> None:
    for indices in (torch.tensor([3, 5]), torch.tensor(2), torch.tensor([[1, 2], [3, 4]]).t()):
        torch.library.opcheck(torch.ops.octavo.embedding_lowbit.default, (indices, table(), 48))
