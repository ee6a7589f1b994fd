"""Weights: the canonical bits that are saved, and the panel that is computed with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo import _C
from octavo.ops import checks

__all__ = ["pack_bits", "pack_weight", "panel_is_current", "unpack_bits", "unpack_weight"]

_HEADER = 128  # Bytes before a panel's weights (csrc/kernels/types.h).


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """The canonical form of int8 codes [O, ...]: uint8 [O, bytes], least significant bit first.

    Each output channel starts at a byte. Codes are two's complement.

    Args:
        codes: int8 [O, ...], within ``bits`` bits.
        bits: width of the codes, 2..8.
    """
    checks.check_dtype(codes, torch.int8, "pack_bits: codes")
    _check_rank(codes, "pack_bits: codes")
    checks.check_bits(bits, "pack_bits: bits")
    result: Tensor = torch.ops.octavo.pack_bits(codes, bits)
    return result


@checks.register_fake("octavo::pack_bits")
def _(codes: Tensor, bits: int) -> Tensor:
    per_channel = 1
    for size in codes.shape[1:]:
        per_channel *= size
    return codes.new_empty((codes.shape[0], (per_channel * bits + 7) // 8), dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int], bits: int) -> Tensor:
    """The int8 codes that `pack_bits` has packed.

    Args:
        packed: uint8 [O, bytes].
        shape: of the codes, [O, ...].
        bits: width of the codes, 2..8.

    Raises:
        ValueError: ``packed`` does not have the bytes of such codes.
    """
    checks.check_dtype(packed, torch.uint8, "unpack_bits: packed")
    checks.check_bits(bits, "unpack_bits: bits")
    per_channel = 1
    for size in shape[1:]:
        per_channel *= size
    expected = (shape[0], (per_channel * bits + 7) // 8)
    if tuple(packed.shape) != expected:
        raise ValueError(
            f"unpack_bits: packed: expected shape {expected} for codes of shape {tuple(shape)} "
            f"at {bits} bits, got {tuple(packed.shape)}. Pass what pack_bits returned."
        )
    result: Tensor = torch.ops.octavo.unpack_bits(packed, list(shape), bits)
    return result


@checks.register_fake("octavo::unpack_bits")
def _(packed: Tensor, shape: Sequence[int], bits: int) -> Tensor:
    return packed.new_empty(tuple(shape), dtype=torch.int8)


def pack_weight(
    codes: Tensor, scale: Tensor, bias: Tensor | None, groups: int, bits: int
) -> Tensor:
    """The panel, uint8 [bytes], of a layer for the active instruction set.

    Args:
        codes: int8 [O, I / groups(, kernel ...)] in torch's weight order, within ``bits`` bits.
        scale: float32 [O], finite, normal; negative where a BatchNorm's gamma was.
        bias: float32 [O] or None.
        groups: groups of the float layer, dividing O.
        bits: width of the codes, 2..8.
    """
    checks.check_dtype(codes, torch.int8, "pack_weight: codes")
    _check_rank(codes, "pack_weight: codes")
    checks.check_bits(bits, "pack_weight: bits")
    checks.check_scales(scale, codes.shape[0], "pack_weight: scale", signed=True)
    if bias is not None:
        checks.check_dtype(bias, torch.float32, "pack_weight: bias")
        if tuple(bias.shape) != (codes.shape[0],):
            raise ValueError(
                f"pack_weight: bias: expected shape [{codes.shape[0]}], got {list(bias.shape)}. "
                "Pass one number an output channel."
            )
    checks.check_range(groups, 1, max(1, codes.shape[0]), "pack_weight: groups")
    if codes.shape[0] % groups:
        raise ValueError(
            f"pack_weight: groups: expected a divisor of {codes.shape[0]} output channels, "
            f"got {groups}."
        )
    result: Tensor = torch.ops.octavo.pack_weight(codes, scale, bias, groups, bits)
    return result


@checks.register_fake("octavo::pack_weight")
def _(codes: Tensor, scale: Tensor, bias: Tensor | None, groups: int, bits: int) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return codes.new_empty(size, dtype=torch.uint8)


def unpack_weight(panel: Tensor, shape: Sequence[int]) -> Tensor:
    """The int8 codes of a panel, in torch's weight order.

    Args:
        panel: uint8 [bytes], of any layout.
        shape: of the codes, [O, I / groups(, kernel ...)].
    """
    checks.check_dtype(panel, torch.uint8, "unpack_weight: panel")
    result: Tensor = torch.ops.octavo.unpack_weight(panel, list(shape))
    return result


@checks.register_fake("octavo::unpack_weight")
def _(panel: Tensor, shape: Sequence[int]) -> Tensor:
    return panel.new_empty(tuple(shape), dtype=torch.int8)


def active_isa() -> str:
    """Name of the instruction set that runs now."""
    name: str = _C.isa()
    return name


def panel_is_current(panel: Tensor) -> bool:
    """Whether the active instruction set can compute with ``panel``."""
    return _C.panel_is_current(bytes(panel[:_HEADER].tolist()))


def _check_rank(codes: Tensor, where: str) -> None:
    if not 2 <= codes.dim() <= 4:
        raise ValueError(
            f"{where}: expected rank 2..4 (output channels first), got shape {list(codes.shape)}. "
            "Reshape the codes to [O, ...]."
        )
