"""linear_lowbit: against float64, any layout and rank, gradients, every width, opcheck, messages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo import ops
from octavo.numerics.scheme import MIN_SCALE

KINDS = ("symmetric", "affine", "levels")


def weight_of(
    kind: str, bits: int, group_size: int, n: int, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 weight, bias and the packed form."""
    groups = ops.lowbit_groups(k, group_size)
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    scale = (torch.rand(n, groups) * 0.01 + 1e-3).bfloat16().float()
    bias = torch.randn(n)
    zero_point = levels = None
    level = codes.double() - 2 ** (bits - 1)
    group = torch.arange(k) // (group_size or max(k, 1))
    if kind == "affine":
        zero_point = torch.randint(0, 2**bits, (n, groups), dtype=torch.uint8)
        level = codes.double() - zero_point.double()[:, group]
    if kind == "levels":
        levels = torch.randint(-128, 128, (-(-n // 64), 2**bits), dtype=torch.int8)
        level = levels[torch.arange(n)[:, None] // 64, codes.long()].double()
    packed = ops.pack_lowbit(
        codes, scale, bits, group_size, zero_point=zero_point, levels=levels, bias=bias
    )
    return level * scale.double()[:, group], bias, packed


def quantized(x: Tensor) -> Tensor:
    """Rows as their 8-bit codes tell them, in float64."""
    rows = x.double()
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    step = ((high - low) / 255).float().clamp(min=MIN_SCALE)
    zero = (-low / step.double()).round().clamp(0, 255)
    q = (x * (1 / step)[:, None]).double()
    q = torch.maximum(torch.minimum(q, (255 - zero)[:, None]), -zero[:, None]).round()
    return q * step.double()[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [0, 32, 128])
def test_is_the_formula(isa: str, kind: str, bits: int, group_size: int) -> None:
    if kind == "affine" and bits == 8:
        return
    weight, bias, packed = weight_of(kind, bits, group_size, 70, 200)
    for m in (1, 3, 20):
        x = torch.randn(m, 200) * torch.logspace(-2, 2, m)[:, None]
        for activations, source in (("dynamic", quantized(x)), ("float", x.double())):
            y = ops.linear_lowbit(x, packed, 70, activations)
            exact = source @ weight.t() + bias.double()
            bound = source.abs() @ weight.abs().t() + bias.abs().double()
            assert bool(((y - exact).abs() <= 2e-5 * bound).all())
    fixed = ops.linear_lowbit_static(x, packed, 70, 0.05, 100, 255)
    codes = torch.clamp(x * (1 / torch.tensor(0.05)), -100, 155).round().double() * 0.05
    exact = codes @ weight.t() + bias.double()
    assert torch.allclose(fixed.double(), exact, rtol=1e-4, atol=1e-4)


def test_same_bits_on_every_instruction_set() -> None:
    import octavo

    before = octavo.isa()
    results: dict[str, list[Tensor]] = {}
    _, _, packed = weight_of("levels", 3, 64, 150, 520)
    x = torch.randn(19, 520)
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            results[isa] = [
                ops.linear_lowbit(x[:m], packed, 150, activations)
                for m in (1, 4, 19)
                for activations in ("dynamic", "float")
            ]
    finally:
        octavo.set_isa(before)
    for isa, result in results.items():
        for mine, other in zip(result, results["scalar"], strict=True):
            assert torch.equal(mine, other), isa


def test_rows_do_not_depend_on_their_batch_or_strides() -> None:
    _, _, packed = weight_of("symmetric", 4, 32, 40, 96)
    x = torch.randn(37, 96)
    for activations in ("dynamic", "float"):
        y = ops.linear_lowbit(x, packed, 40, activations)
        for row in range(37):
            assert torch.equal(
                ops.linear_lowbit(x[row : row + 1], packed, 40, activations)[0], y[row]
            )
        assert torch.equal(ops.linear_lowbit(x[5], packed, 40, activations), y[5])
        assert torch.equal(ops.linear_lowbit(x.view(1, 37, 96), packed, 40, activations)[0], y)
        wide = torch.randn(37, 193)
        wide[:, 1::2] = x
        assert torch.equal(ops.linear_lowbit(wide[:, 1::2], packed, 40, activations), y)
        assert ops.linear_lowbit(torch.empty(0, 96), packed, 40, activations).shape == (0, 40)


def test_gradients() -> None:
    weight, _, packed = weight_of("affine", 3, 32, 8, 48)
    x = torch.randn(3, 48, requires_grad=True)
    y = ops.linear_lowbit(x, packed, 8, "float")
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.float().sum(0).expand(3, 48), atol=1e-6)
    for refused in (
        ops.linear_lowbit(x, packed, 8),
        ops.linear_lowbit_static(x, packed, 8, 0.1, 3, 255),
    ):
        assert refused.requires_grad
        with pytest.raises(RuntimeError, match=r"inference only.*qat=True"):
            refused.sum().backward()
    with torch.no_grad():
        assert not ops.linear_lowbit(x, packed, 8).requires_grad


def test_opcheck() -> None:
    _, _, packed = weight_of("symmetric", 4, 32, 8, 48)
    for x in (torch.randn(5, 48), torch.randn(48, 5).t(), torch.randn(2, 3, 48), torch.randn(48)):
        for activations in ("dynamic", "float"):
            torch.library.opcheck(
                torch.ops.octavo.linear_lowbit.default, (x, packed, 8, activations)
            )
        torch.library.opcheck(
            torch.ops.octavo.linear_lowbit_static.default, (x, packed, 8, 0.1, 3, 255)
        )


def test_compiles() -> None:
    _, _, packed = weight_of("symmetric", 4, 32, 8, 48)
    x = torch.randn(5, 48)
    compiled = torch.compile(
        lambda v: ops.linear_lowbit(v, packed, 8), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), ops.linear_lowbit(x, packed, 8))


def test_messages() -> None:
    _, _, packed = weight_of("symmetric", 4, 32, 8, 48)
    x = torch.randn(5, 48)
    with pytest.raises(ValueError, match="'dynamic' or 'float', got 'static'"):
        ops.linear_lowbit(x, packed, 8, "static")
    with pytest.raises(RuntimeError, match="last dimension 48, got shape"):
        ops.linear_lowbit(x[:, :47], packed, 8)
    with pytest.raises(RuntimeError, match="out_features: expected 8, got 9"):
        ops.linear_lowbit(x, packed, 9)
    with pytest.raises(RuntimeError, match="expected a packed low-bit weight"):
        ops.linear_lowbit(x, packed[:-64], 8)
    rows = ops.pack_lowbit(
        torch.zeros(8, 48, dtype=torch.uint8), torch.ones(8, 2), 4, 32, rows=True
    )
    with pytest.raises(RuntimeError, match="packed for products, got one for look-ups"):
        ops.linear_lowbit(x, rows, 8)
    with pytest.raises(ValueError, match=r"zero_point: expected 0\.\.15, got 16"):
        ops.linear_lowbit_static(x, packed, 8, 0.1, 16, 15)
    with pytest.raises(ValueError, match="scale: expected a finite positive number"):
        ops.linear_lowbit_static(x, packed, 8, 0.0, 3, 15)
