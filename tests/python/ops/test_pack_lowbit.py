"""pack_lowbit: round trips of every width, kind and group size, resident bytes, messages, opcheck."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo import ops


def parts(bits: int, group_size: int, n: int = 70, k: int = 100) -> dict[str, Tensor]:
    groups = ops.lowbit_groups(k, group_size)
    return {
        "codes": torch.randint(0, 2**bits, (n, k), dtype=torch.uint8),
        "scale": (torch.rand(n, groups) + 0.01).bfloat16().float(),
        "zero_point": torch.randint(0, 2**bits, (n, groups), dtype=torch.uint8),
        "levels": torch.randint(-128, 128, (-(-n // 64), 2**bits), dtype=torch.int8),
        "bias": torch.randn(n),
    }


@pytest.mark.parametrize("rows", [False, True], ids=["products", "look-ups"])
@pytest.mark.parametrize("group_size", [0, 16, 48, 256])
@pytest.mark.parametrize("bits", range(2, 9))
def test_gives_back_what_was_packed(bits: int, group_size: int, rows: bool) -> None:
    p = parts(bits, group_size)
    group = torch.arange(100) // (group_size or 100)
    scale = p["scale"][:, group]
    for kind in ("symmetric", "zero_point", "levels"):
        if kind == "zero_point" and bits == 8:
            continue
        extra = {} if kind == "symmetric" else {kind: p[kind]}
        packed = ops.pack_lowbit(p["codes"], p["scale"], bits, group_size, rows=rows, **extra)
        back = ops.unpack_lowbit(packed, 70, 100)
        assert torch.equal(back.scale, p["scale"])
        assert (back.zero_point is not None) == (kind == "zero_point")
        assert (back.levels is not None) == (kind == "levels")
        level = p["codes"].float() - 2 ** (bits - 1)
        if back.zero_point is not None:
            assert torch.equal(back.zero_point, p["zero_point"])
            level = p["codes"].float() - p["zero_point"][:, group].float()
        if back.levels is not None:
            assert torch.equal(back.levels, p["levels"])
            table = torch.arange(70)[:, None] // 64
            level = p["levels"][table, p["codes"].long()].float()
            assert torch.equal(back.levels[table, back.codes.long()].float(), level)
        if kind != "levels" or bits <= 4 or rows:
            assert torch.equal(back.codes, p["codes"])
        assert torch.equal(ops.dequantize_lowbit(packed, 70, 100), level * scale)
        again = ops.pack_lowbit(back.codes, back.scale, bits, group_size, rows=rows, **extra)
        assert torch.equal(again, packed), "packed forms are reproducible"


def test_four_bits_in_groups_of_128_take_at_most_4_point_3() -> None:
    for n, k in ((768, 768), (3072, 768), (4096, 4096)):
        codes = torch.zeros(n, k, dtype=torch.uint8)
        packed = ops.pack_lowbit(codes, torch.ones(n, k // 128), 4, 128, bias=torch.zeros(n))
        assert packed.numel() * 8 <= 4.3 * n * k


CODES = torch.ones(4, 100, dtype=torch.uint8)
SCALE = torch.ones(4, 4)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: ops.pack_lowbit(CODES.int(), SCALE, 4, 32), TypeError, "uint8, got torch.int32"),
        (lambda: ops.pack_lowbit(CODES[0], SCALE, 4, 32), ValueError, r"got \[100\]"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 9, 32), ValueError, "got 9"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 4, 20), ValueError, "multiple of 16.*got 20"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 4, 272), ValueError, r"0\.\.256, got 272"),
        (lambda: ops.pack_lowbit(CODES, SCALE[:, :3], 4, 32), ValueError, r"\[4, 4\], got \[4, 3\]"),
        (lambda: ops.pack_lowbit(CODES * 20, SCALE, 4, 32), ValueError, r"0\.\.15 for 4 bits, got 20"),
        (lambda: ops.pack_lowbit(CODES, SCALE * 1.001, 4, 32), ValueError, "bfloat16 values"),
        (lambda: ops.pack_lowbit(CODES, SCALE * 0, 4, 32), ValueError, "finite positive normal"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 8, 32, zero_point=CODES[:, :4]), ValueError, "at most 7"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 4, 32, zero_point=CODES[:, :4], levels=torch.zeros(1, 16, dtype=torch.int8)),
         ValueError, "got both"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 4, 32, levels=torch.zeros(1, 8, dtype=torch.int8)), ValueError,
         r"levels: expected shape \[1, 16\], got \[1, 8\]"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 4, 32, bias=torch.ones(3)), ValueError, r"bias.*\[4\], got \[3\]"),
        (lambda: ops.pack_lowbit(CODES, SCALE, 4, 32, bias=torch.ones(4), rows=True), ValueError, "rows=True"),
        (lambda: ops.pack_lowbit(torch.ones(1, 65794, dtype=torch.uint8), torch.ones(1, 1), 4, 0), ValueError,
         "would not fit int32, got 0 for 65794"),
    ],
    ids=range(15),
)  # fmt: skip
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]


def test_unpacking_checks_its_shape() -> None:
    packed = ops.pack_lowbit(CODES, SCALE, 4, 32)
    with pytest.raises(RuntimeError, match="expected 4 and 100, got 4 and 96"):
        ops.unpack_lowbit(packed, 4, 96)
    with pytest.raises(RuntimeError, match="expected 4 and 100, got 5 and 100"):
        ops.dequantize_lowbit(packed, 5, 100)
    with pytest.raises(RuntimeError, match="expected a packed low-bit weight"):
        ops.unpack_lowbit(torch.zeros(4096, dtype=torch.uint8), 4, 100)


def test_opcheck() -> None:
    p = parts(4, 32)
    op = torch.ops.octavo
    for zero_point, levels in ((None, None), (p["zero_point"], None), (None, p["levels"])):
        arguments = (p["codes"], p["scale"], zero_point, levels, p["bias"], 4, 32, False)
        torch.library.opcheck(op.pack_lowbit.default, arguments)
        packed = op.pack_lowbit(*arguments)
        torch.library.opcheck(op.unpack_lowbit.default, (packed, 70, 100))
        torch.library.opcheck(op.dequantize_lowbit.default, (packed, 70, 100))
