"""linear_dynamic: against exact integers, any layout and rank, gradients refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo import ops
from octavo.numerics.scheme import MIN_SCALE


def reference(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """csrc/README.md in float64: range and codes of a row, an exact sum, one rounding."""
    rows = x.reshape(-1, x.shape[-1]).double()
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    step = ((high - low) / 255).float().clamp(min=MIN_SCALE)
    zero = (-low / step.double()).round().clamp(0, 255)
    q = (rows.float() * (1 / step)[:, None]).double()
    q = torch.maximum(torch.minimum(q, (255 - zero)[:, None]), -zero[:, None]).round()
    sums = q @ codes.double().t()
    y = sums * (step[:, None].double() * scale.double()).float().double() + bias.double()
    return y.float().view(*x.shape[:-1], -1)


def layer(k: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scale, bias = torch.rand(n) * 0.01 + 1e-4, torch.randn(n)
    return codes, scale, bias, ops.pack_weight(codes, scale, bias, 1, 8)


@pytest.mark.parametrize("k, n", [(1, 1), (3, 5), (64, 64), (129, 33), (768, 70)])
@pytest.mark.parametrize("m", [1, 2, 7, 33])
def test_is_the_formula(isa: str, m: int, k: int, n: int) -> None:
    codes, scale, bias, panel = layer(k, n)
    x = torch.randn(m, k) * torch.logspace(-3, 3, m)[:, None]
    y = ops.linear_dynamic(x, panel, n)
    expected = reference(x, codes, scale, bias)
    assert torch.allclose(y, expected, rtol=3e-7, atol=float(expected.abs().max()) * 2e-7)


def test_rows_do_not_depend_on_their_batch() -> None:
    *_, panel = layer(96, 40)
    x = torch.randn(37, 96)
    y = ops.linear_dynamic(x, panel, 40)
    for row in range(37):
        assert torch.equal(ops.linear_dynamic(x[row : row + 1], panel, 40)[0], y[row])
    assert torch.equal(ops.linear_dynamic(x[5], panel, 40), y[5])
    assert torch.equal(ops.linear_dynamic(x.view(1, 37, 96), panel, 40)[0], y)


def test_any_strides() -> None:
    *_, panel = layer(24, 8)
    x = torch.randn(6, 10, 24)
    y = ops.linear_dynamic(x, panel, 8)
    wide = torch.randn(6, 10, 49)
    wide[..., 1::2] = x
    assert torch.equal(ops.linear_dynamic(wide[..., 1::2], panel, 8), y)
    assert torch.equal(ops.linear_dynamic(x.transpose(0, 1), panel, 8), y.transpose(0, 1))
    expanded = ops.linear_dynamic(x[:1].expand(6, 10, 24), panel, 8)
    assert torch.equal(expanded, y[:1].expand(6, 10, 8)) and expanded.is_contiguous()


def test_empty() -> None:
    *_, panel = layer(24, 8)
    assert ops.linear_dynamic(torch.empty(0, 24), panel, 8).shape == (0, 8)
    assert ops.linear_dynamic(torch.empty(3, 0, 24), panel, 8).shape == (3, 0, 8)


def test_gradients_are_refused_not_lost() -> None:
    *_, panel = layer(24, 8)
    x = torch.randn(3, 24, requires_grad=True)
    y = ops.linear_dynamic(x, panel, 8)
    assert y.requires_grad
    torch.relu_(y)  # A caller may go on in place.
    with pytest.raises(RuntimeError, match=r"inference only.*qat=True"):
        y.sum().backward()
    with torch.no_grad():
        assert not ops.linear_dynamic(x, panel, 8).requires_grad
    assert not ops.linear_dynamic(x.detach(), panel, 8).requires_grad


def test_opcheck() -> None:
    *_, panel = layer(24, 8)
    for x in (torch.randn(5, 24), torch.randn(24, 5).t(), torch.randn(2, 3, 24), torch.randn(24)):
        torch.library.opcheck(torch.ops.octavo.linear_dynamic.default, (x, panel, 8))
