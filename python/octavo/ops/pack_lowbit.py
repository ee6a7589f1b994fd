"""Weights of 2..8 bits with group scales, zero points or level tables, in the form kernels read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from octavo.ops import checks

__all__ = ["LowbitWeight", "dequantize_lowbit", "lowbit_groups", "pack_lowbit", "unpack_lowbit"]

_TABLE_CHANNELS = 64
_LONGEST_ROW = 65793


class LowbitWeight(NamedTuple):
    """What `pack_lowbit` packed: codes of levels, and how groups scale them."""

    codes: Tensor  # uint8 [out_features, in_features]
    scale: Tensor  # float32 [out_features, groups]
    zero_point: Tensor | None  # uint8 [out_features, groups]
    levels: Tensor | None  # int8 [ceil(out_features / 64), 2 ** bits]


def lowbit_groups(in_features: int, group_size: int) -> int:
    """Number of scales of a row: ceil(in_features / group_size), 1 where group_size is 0.

    Example:
        >>> lowbit_groups(100, 32)
        4
    """
    return 1 if group_size == 0 else max(1, -(-in_features // group_size))


def pack_lowbit(
    codes: Tensor,
    scale: Tensor,
    bits: int,
    group_size: int,
    *,
    zero_point: Tensor | None = None,
    levels: Tensor | None = None,
    bias: Tensor | None = None,
    rows: bool = False,
) -> Tensor:
    """uint8 [bytes]: a weight for `linear_lowbit`, or with ``rows`` for `embedding_lowbit`.

    weight = scale of the group * level of the code, where the level is ``code - 2 ** (bits - 1)``,
    ``code - zero_point`` of the group, or ``levels[channel // 64, code]``. The result serves every
    instruction set.

    Args:
        codes: uint8 [out_features, in_features], 0 .. 2 ** bits - 1.
        scale: float32 [out_features, groups]; bfloat16 values unless ``group_size`` is 0.
        bits: 2..8. 2, 3 and 4 bits take that much memory; 5..8 take a byte in products, and in
            look-ups as many bits as they have.
        group_size: inputs that share a scale, a multiple of 16 in 16..256 (the last group of a row
            may be shorter), or 0: one scale for the row. Groups of 3-bit products are padded to
            multiples of 32 inputs.
        zero_point: uint8 [out_features, groups], for at most 7 bits.
        levels: int8 [ceil(out_features / 64), 2 ** bits], one table for 64 consecutive channels.
        bias: float32 [out_features], not with ``rows``.
        rows: order for look-ups.

    Raises:
        TypeError, ValueError: an argument is not of this form.
    """
    where = "pack_lowbit"
    checks.check_dtype(codes, torch.uint8, f"{where}: codes")
    if codes.dim() != 2:
        raise ValueError(
            f"{where}: codes: expected shape [out_features, in_features], got "
            f"{list(codes.shape)}. Reshape the codes to a matrix."
        )
    channels, inputs = codes.shape
    checks.check_bits(bits, f"{where}: bits")
    _check_group_size(group_size, inputs, rows, f"{where}: group_size")
    groups = lowbit_groups(inputs, group_size)
    _check_codes(codes, bits, f"{where}: codes")
    _check_scale(scale, (channels, groups), group_size != 0, f"{where}: scale")
    if zero_point is not None:
        _check_array(zero_point, torch.uint8, (channels, groups), f"{where}: zero_point")
        if levels is not None:
            raise ValueError(
                f"{where}: levels: expected none beside zero_point, got both. Leave one out."
            )
        if bits == 8:
            raise ValueError(
                f"{where}: zero_point: expected at most 7 bits, so that levels fit int8, got 8. "
                "Use symmetric codes."
            )
        _check_codes(zero_point, bits, f"{where}: zero_point")
    if levels is not None:
        tables = -(-channels // _TABLE_CHANNELS)
        _check_array(levels, torch.int8, (tables, 2**bits), f"{where}: levels")
    if bias is not None:
        if rows:
            raise ValueError(f"{where}: bias: expected none with rows=True, got one. Leave it out.")
        _check_array(bias, torch.float32, (channels,), f"{where}: bias")
    result: Tensor = torch.ops.octavo.pack_lowbit(
        codes, scale, zero_point, levels, bias, bits, group_size, rows
    )
    return result


@checks.register_fake("octavo::pack_lowbit")
def _(  # noqa: PLR0917 (the operator's own order)
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    levels: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    rows: bool,
) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return codes.new_empty(size, dtype=torch.uint8)


def unpack_lowbit(packed: Tensor, out_features: int, in_features: int) -> LowbitWeight:
    """What was packed, without the bias.

    Level tables of more than 4 bits in products: codes of equal levels come back as the smallest.
    """
    checks.check_dtype(packed, torch.uint8, "unpack_lowbit: packed")
    codes, scale, zero_point, levels = torch.ops.octavo.unpack_lowbit(
        packed, out_features, in_features
    )
    return LowbitWeight(
        codes,
        scale,
        zero_point if zero_point.shape[0] else None,
        levels if levels.shape[0] else None,
    )


@checks.register_fake("octavo::unpack_lowbit")
def _(packed: Tensor, out_features: int, in_features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size
    groups = size()
    return (
        packed.new_empty((out_features, in_features)),
        packed.new_empty((out_features, groups), dtype=torch.float32),
        packed.new_empty((size(), groups)),
        packed.new_empty((size(), size()), dtype=torch.int8),
    )


def dequantize_lowbit(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """float32 [out_features, in_features]: the weight, level times scale."""
    checks.check_dtype(packed, torch.uint8, "dequantize_lowbit: packed")
    result: Tensor = torch.ops.octavo.dequantize_lowbit(packed, out_features, in_features)
    return result


@checks.register_fake("octavo::dequantize_lowbit")
def _(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    return packed.new_empty((out_features, in_features), dtype=torch.float32)


def _check_group_size(group_size: object, inputs: int, rows: bool, where: str) -> None:
    checks.check_range(group_size, 0, 256, where)
    assert isinstance(group_size, int)
    if group_size % 16:
        raise ValueError(
            f"{where}: expected 0 or a multiple of 16 in 16..256, got {group_size}. "
            "Choose 32, 64 or 128."
        )
    if group_size == 0 and not rows and inputs > _LONGEST_ROW:
        raise ValueError(
            f"{where}: expected groups for rows of more than {_LONGEST_ROW} inputs, whose sums "
            f"would not fit int32, got 0 for {inputs}. Choose 32, 64 or 128."
        )


def _check_array(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], where: str) -> None:
    checks.check_dtype(x, dtype, where)
    if tuple(x.shape) != shape:
        raise ValueError(f"{where}: expected shape {list(shape)}, got {list(x.shape)}. Reshape it.")


def _check_codes(codes: Tensor, bits: int, where: str) -> None:
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(
            f"{where}: expected 0..{2**bits - 1} for {bits} bits, got {int(codes.max())}. "
            "Add 2 ** (bits - 1) to signed codes."
        )


def _check_scale(scale: Tensor, shape: tuple[int, int], grouped: bool, where: str) -> None:
    _check_array(scale, torch.float32, shape, where)
    checks.check_scales(scale.flatten(), scale.numel(), where)
    if grouped and not torch.equal(scale.bfloat16().float(), scale):
        wrong = scale[scale.bfloat16().float() != scale]
        raise ValueError(
            f"{where}: expected bfloat16 values for groups, got {float(wrong[0])}. "
            "Round with .bfloat16().float() before choosing codes."
        )
