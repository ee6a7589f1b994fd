"""clip_error: against float64, the same bits on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import isas_and_thread_counts
from octavo import ops


def expected(
    x: Tensor, scale: Tensor, unit: Tensor, ends: Tensor, importance: Tensor | None
) -> Tensor:
    low, high = ends
    u = (x[:, None] * (1.0 / scale)[:, :, None]).maximum(low[:, None, None])
    q = u.minimum(high[:, None, None]).round()
    off = (x[:, None].double() - (q * scale[:, :, None]).double()).abs()
    power = (off / unit[:, None, None].double()) ** 2.4
    return (power if importance is None else power * importance[:, None].double()).sum(2)


def drawn(rows: int, columns: int, scales: int) -> tuple[Tensor, ...]:
    x = torch.randn(rows, columns)
    unit = x.abs().amax(1).clamp(min=1e-3) if columns else torch.ones(rows)
    high = torch.randint(1, 128, (rows,)).float()
    ends = torch.stack([-torch.randint(1, 129, (rows,)).float(), high])
    return x, unit[:, None] * (torch.rand(rows, scales) + 0.01) / high[:, None], unit, ends


@pytest.mark.parametrize("columns", [0, 1, 5, 16, 31, 64, 511, 512, 513, 1600])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_float64(isa: str, columns: int, weighted: bool) -> None:
    x, *rest = drawn(7, columns, 5)
    importance = torch.rand(7, columns) if weighted else None
    got = ops.clip_error(x, *rest, importance)
    assert got.dtype is torch.float64 and got.shape == (7, 5)
    torch.testing.assert_close(got, expected(x, *rest, importance), rtol=2e-5, atol=1e-9)


def test_what_is_hit_costs_nothing(isa: str) -> None:
    x = torch.arange(-8, 8).float().repeat(3, 1)
    ends = torch.tensor([[-8.0], [7.0]]).expand(2, 3)
    error = ops.clip_error(x, torch.tensor([[1.0, 0.5]]).repeat(3, 1), torch.ones(3), ends)
    assert float(error[:, 0].max()) < 1e-20 and float(error[:, 1].min()) > 10


def test_every_isa_and_thread_count_has_the_same_bits() -> None:
    arguments = drawn(65, 700, 11)
    found = []
    for _ in isas_and_thread_counts():
        found.append(ops.clip_error(*arguments))
        turned = [a.t().contiguous().t() if a.dim() == 2 else a for a in arguments]
        found.append(ops.clip_error(*turned))
    assert all(torch.equal(one, found[0]) for one in found)


def test_messages() -> None:
    x, scale, unit, ends = drawn(3, 4, 2)
    with pytest.raises(TypeError, match="clip_error: x.*int64"):
        ops.clip_error(x.long(), scale, unit, ends)
    with pytest.raises(RuntimeError, match="scale: expected shape"):
        ops.clip_error(x, scale[:2], unit, ends)
    with pytest.raises(RuntimeError, match="importance: expected shape"):
        ops.clip_error(x, scale, unit, ends, scale)
    with pytest.raises(RuntimeError, match=r"expected x \[rows, columns\]"):
        ops.clip_error(x[0], scale, unit, ends)
