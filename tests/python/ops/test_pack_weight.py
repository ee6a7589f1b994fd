"""The canonical bit stream and panels: round trips, the layout of the stream, messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import octavo
from octavo import ops

SHAPES = [(1, 1), (5, 7), (64, 33), (6, 4, 3), (8, 3, 3, 3), (32, 1, 5, 5), (130, 2, 1, 7)]


def codes_of(shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Every code of the width occurs, the smallest and largest included."""
    count = int(np.prod(shape))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    ends = torch.tensor([low, high - 1])
    return torch.cat([ends, torch.randint(low, high, (count,))])[:count].view(shape).to(torch.int8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_bits_is_a_little_endian_stream(bits: int) -> None:
    for length in (1, 2, 7, 8, 9, 64, 511):
        codes = codes_of((3, length), bits)
        packed = ops.pack_bits(codes, bits)
        for row in range(3):
            number = sum((int(c) % 2**bits) << (bits * i) for i, c in enumerate(codes[row]))
            size = (length * bits + 7) // 8
            assert bytes(packed[row].tolist()) == number.to_bytes(size, "little")
        assert torch.equal(ops.unpack_bits(packed, (3, length), bits), codes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_panels_give_their_codes_back(isa: str, shape: tuple[int, ...], bits: int) -> None:
    codes = codes_of(shape, bits)
    scale, bias = torch.rand(shape[0]) + 0.01, torch.randn(shape[0])
    panel = ops.pack_weight(codes, scale, bias, 1, bits)
    assert torch.equal(ops.unpack_weight(panel, shape), codes)
    assert ops.panel_is_current(panel)
    assert torch.equal(panel, ops.pack_weight(codes, scale, bias, 1, bits)), (
        "panels are reproducible"
    )
    transposed = codes.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(panel, ops.pack_weight(transposed, scale, bias, 1, bits))


def test_panels_of_another_instruction_set_are_told_apart() -> None:
    codes = codes_of((8, 8), 8)
    before = octavo.isa()
    layouts = {}
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            layouts[isa] = ops.pack_weight(codes, torch.ones(8), None, 1, 8)
        for isa in octavo.isas():
            octavo.set_isa(isa)
            for other, panel in layouts.items():
                same = torch.equal(panel, layouts[isa])
                assert ops.panel_is_current(panel) == same, (isa, other)
                assert torch.equal(ops.unpack_weight(panel, (8, 8)), codes)
    finally:
        octavo.set_isa(before)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_grouped_panels(isa: str, groups: int) -> None:
    codes = codes_of((16, 24 // groups, 3, 3), 8)
    panel = ops.pack_weight(codes, torch.ones(16), None, groups, 8)
    assert torch.equal(ops.unpack_weight(panel, codes.shape), codes)


ONE = torch.ones(4)
CODES = torch.ones(4, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: ops.pack_bits(CODES.float(), 8), TypeError, "int8, got torch.float32"),
        (lambda: ops.pack_bits(CODES, 1), ValueError, r"2\.\.8, got 1"),
        (lambda: ops.pack_bits(CODES, 9), ValueError, "got 9"),
        (lambda: ops.pack_bits(CODES, True), TypeError, "got True"),
        (lambda: ops.unpack_bits(torch.ones(4, 3, dtype=torch.uint8), (4, 4), 8), ValueError, r"\(4, 4\)"),
        (lambda: ops.pack_weight(CODES, torch.ones(3), None, 1, 8), ValueError, r"\[4\], got \[3\]"),
        (lambda: ops.pack_weight(CODES, ONE * 0, None, 1, 8), ValueError, "got 0.0 at index 0"),
        (lambda: ops.pack_weight(CODES, ONE / 0, None, 1, 8), ValueError, "got inf at index 0"),
        (lambda: ops.pack_weight(CODES, ONE, torch.ones(5), 1, 8), ValueError, r"bias.*\[4\], got \[5\]"),
        (lambda: ops.pack_weight(CODES, ONE, ONE.half(), 1, 8), TypeError, "float16"),
        (lambda: ops.pack_weight(CODES, ONE, None, 3, 8), ValueError, "divisor of 4.*got 3"),
        (lambda: ops.pack_weight(CODES, ONE, None, 0, 8), ValueError, "got 0"),
        (lambda: ops.pack_weight(CODES[0], ONE, None, 1, 8), ValueError, "rank"),
    ],
    ids=range(13),
)  # fmt: skip
def test_messages(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]


def test_opcheck() -> None:
    codes = codes_of((6, 4, 3, 3), 8)
    scale, bias = torch.rand(6) + 0.1, torch.randn(6)
    narrow = codes_of((6, 4, 3, 3), 5)
    packed = ops.pack_bits(narrow, 5)
    panel = ops.pack_weight(codes, scale, bias, 1, 8)
    torch.library.opcheck(torch.ops.octavo.pack_bits.default, (narrow, 5))
    torch.library.opcheck(torch.ops.octavo.unpack_bits.default, (packed, [6, 4, 3, 3], 5))
    torch.library.opcheck(torch.ops.octavo.pack_weight.default, (codes, scale, bias, 1, 8))
    torch.library.opcheck(torch.ops.octavo.pack_weight.default, (codes, scale, None, 1, 8))
    torch.library.opcheck(torch.ops.octavo.unpack_weight.default, (panel, [6, 4, 3, 3]))


def test_sizes_near_the_ends_of_int64_are_refused() -> None:
    """Also beside a size of 0, where no product of all sizes shows them."""
    pack = torch.ops.octavo
    with pytest.raises(
        RuntimeError, match=r"groups: expected a divisor of 0, got 9223372036854775807"
    ):
        pack.pack_weight(torch.empty(0, 0, dtype=torch.int8), torch.empty(0), None, 2**63 - 1, 8)
    with pytest.raises(RuntimeError, match="expected a product of sizes below"):
        pack.unpack_bits(torch.empty(0, 0, dtype=torch.uint8), [0, 2**62], 8)
    for shape in ((2**62, 0), (0, 2**62)):
        codes = torch.empty(*shape, dtype=torch.int8)
        with pytest.raises(RuntimeError, match="expected"):
            pack.pack_weight(codes, torch.empty(0), None, 1, 8)
        with pytest.raises(RuntimeError, match="pack_lowbit: codes: expected fewer"):
            pack.pack_lowbit(codes.byte(), torch.empty(0), None, None, None, 4, 16, False)


def test_layers_compute_with_panels_of_any_instruction_set() -> None:
    """The panel chooses the kernels, so that a set_isa meanwhile changes no call."""
    codes, x = codes_of((70, 40), 8), torch.randn(5, 40)
    before = octavo.isa()
    panels, results = {}, {}
    try:
        for isa in octavo.isas():
            octavo.set_isa(isa)
            panels[isa] = ops.pack_weight(codes, torch.full((70,), 0.02), None, 1, 8)
        for isa in octavo.isas():
            octavo.set_isa(isa)
            for other, panel in panels.items():
                results[isa, other] = ops.linear_dynamic(x, panel, 70)
    finally:
        octavo.set_isa(before)
    first = results[before, before]
    assert all(torch.equal(y, first) for y in results.values())
