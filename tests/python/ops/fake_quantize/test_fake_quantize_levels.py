"""fake_quantize_levels: nearest level by distance in float64, gradients, messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fake_quantize_reference import DTYPES, HARD, Case, same_bits
from octavo import ops

TABLES = {
    "apot": [-10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10],
    "ternary": [-1, 0, 1],
    "two": [-128, 127],
    "nf4": [-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127],
    "thirty-two": sorted({round(127 * np.sign(i) * abs(i / 16) ** 2) for i in range(-16, 17)}),
    "all": list(range(-128, 128)),
    "repeated": [-3, -3, 0, 5, 5],
}


def nearest(scaled: np.ndarray, tables: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64: the level at the smallest distance, the lower of two."""
    result = np.empty_like(scaled)
    for block, table in enumerate(tables):
        part = scaled[rows == block]
        finite = np.nan_to_num(part, nan=0.0, posinf=1e300, neginf=-1e300)
        distance = np.abs(np.clip(finite, -1e6, 1e6)[..., None] - table)
        result[rows == block] = np.where(np.isnan(part), np.nan, table[distance.argmin(-1)])
    return result


def values(rows: int, columns: int, scale: float) -> Tensor:
    x = torch.randn(rows, columns) * 40 * scale
    x.view(-1)[: len(HARD)] = torch.tensor(HARD)
    # Halfway between levels.
    x[-1] = (torch.arange(columns) - columns // 2) * 0.5 * scale
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(TABLES))
def test_values_and_gradients(isa: str, name: str, dtype: torch.dtype) -> None:
    levels = torch.tensor(TABLES[name], dtype=torch.int8)
    for blocks in (1, 2):
        tables = levels if blocks == 1 else torch.stack([levels, (levels // 2).sort()[0]])
        for axis, group_size in ((0, 0), (None, 0), (0, 16)):
            x = values(70, 37, 0.25).to(dtype)
            shape = {(0, 0): (70,), (None, 0): (1,), (0, 16): (70, 3)}[axis, group_size]
            scale = torch.where(torch.rand(shape) < 0.5, 0.25, 0.11)
            case = Case(name, x, scale, None, 0, 0, axis, group_size)
            spread = case.spread(scale)
            r = (1 / spread).astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = (x.float().numpy() * r).astype(np.float64)
            table = tables.double().numpy().reshape(blocks, -1)
            rows = np.minimum(np.arange(70) // 64, blocks - 1)
            level = nearest(scaled, table, rows)
            low, high = table[rows, 0][:, None], table[rows, -1][:, None]
            inside = (scaled >= low) & (scaled <= high)
            dy = torch.randn(x.shape).to(dtype)
            wide = dy.double().numpy()
            good = np.isfinite(x.float().numpy())
            for learned in (False, True):
                y = ops.fake_quantize_levels(
                    x, tables, scale, axis=axis, group_size=group_size, learned=learned
                )
                assert same_bits(y, level * spread)
            for clip in (False, True):
                leaf = torch.where(x.isfinite(), x, 0.0).requires_grad_()
                step = (-scale).requires_grad_()
                y = ops.fake_quantize_levels(
                    leaf, tables, step, axis=axis, group_size=group_size, learned=True, grad_scale=0.3, clip=clip
                )  # fmt: skip
                dx, dscale = torch.autograd.grad(y, [leaf, step], dy)
                passes = inside | ~good if clip else np.ones_like(inside)
                zero_inside = (low <= 0) & (high >= 0)
                if zero_inside.all():
                    assert same_bits(dx, np.where(passes, wide, 0.0))
                of_zero = nearest(np.zeros_like(scaled), table, rows)
                terms = np.where(good, np.where(inside, level - scaled, level), of_zero) * wide
                error = 1e-6 * 0.3 * case.gather(np.abs(terms)) + 1e-30
                assert (np.abs(dscale.numpy() + 0.3 * case.gather(terms)) <= error).all()


def test_linear_levels_are_fake_quantize(isa: str) -> None:
    """Except on ties, which go to the lower level instead of the even one."""
    levels = torch.arange(-8, 8, dtype=torch.int8)
    x, scale = torch.randn(16, 50), torch.rand(16) * 0.2 + 0.05
    y = ops.fake_quantize_levels(x, levels, scale)
    assert torch.equal(y, ops.fake_quantize(x, scale, qmin=-8, qmax=7, axis=0))


def test_no_gradient_to_a_scale_that_is_not_learned() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    scale = torch.ones(4, requires_grad=True)
    ops.fake_quantize_levels(x, torch.tensor([-1, 0, 1], dtype=torch.int8), scale).sum().backward()
    assert scale.grad is None and x.grad is not None


x34 = torch.ones(3, 4)
three = torch.tensor([-1, 0, 1], dtype=torch.int8)
BAD = [
    (lambda: ops.fake_quantize_levels(x34, three.int(), torch.ones(3)), TypeError, "levels: .*int32"),
    (lambda: ops.fake_quantize_levels(x34, three.flip(0), torch.ones(3)), ValueError, r"levels: .*ascending.*\[1, 0, -1\]"),
    (lambda: ops.fake_quantize_levels(x34, three[:1], torch.ones(3)), ValueError, r"levels: .*got \[1\]"),
    (lambda: ops.fake_quantize_levels(x34, three.expand(2, 3), torch.ones(3)), ValueError, "levels: .*1 tables for 3 channels, got 2"),
    (lambda: ops.fake_quantize_levels(x34, three, torch.ones(4)), ValueError, r"scale: .*\[3\], got \[4\]"),
    (lambda: ops.fake_quantize_levels(x34, three, torch.zeros(3)), ValueError, "scale: .*got 0.0"),
    (lambda: ops.fake_quantize_levels(x34, three, torch.ones(4), axis=1), ValueError, "axis: .*got 1"),
    (lambda: ops.fake_quantize_levels(torch.tensor(1.0), three, torch.ones(1)), ValueError, "rank 0"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, text", BAD, ids=range(len(BAD)))
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]
