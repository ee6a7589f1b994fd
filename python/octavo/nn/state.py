"""The state of a quantized layer as it stands in files and in a state_dict, read and checked.

Every road into a layer reads its state here, so that a state is good on all of them or on none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from octavo import ops
from octavo.errors import describe
from octavo.numerics.grids import TABLE_CHANNELS, spread_zero_point, values_of
from octavo.numerics.scheme import MIN_SCALE, QParams
from octavo.ops import checks

__all__ = ["LayerState", "StateError", "StateForm", "read_range", "read_state"]


class StateError(ValueError):
    """A state is not one of this layer. Who reads it adds what to do."""


@dataclass(frozen=True)
class StateForm:
    """What a layer's state consists of.

    Attributes:
        shape: of the canonical codes, (O, I / groups, kernel ...).
        bits: width of the codes.
        has_levels: whether codes stand for the levels of a table.
        group_size: inputs that share a scale; 0: all of an output channel.
        symmetric: whether there are no zero points.
        packed: whether weights stay in ``bits`` bits in memory.
        has_bias: whether there is a bias.
    """

    shape: tuple[int, ...]
    bits: int
    has_levels: bool
    group_size: int
    symmetric: bool
    packed: bool
    has_bias: bool

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the tensors."""
        optional = {
            "bias": self.has_bias,
            "weight_levels": self.has_levels,
            "weight_zero_point": not self.symmetric,
        }
        return ("weight_packed", "weight_scale", *(name for name in optional if optional[name]))


class LayerState(NamedTuple):
    """A state that fits its layer."""

    values: Tensor  # int8 [O, I / groups, kernel ...], levels
    scale: Tensor  # float32 [O]; [O, groups] with groups of inputs
    bias: Tensor | None  # float32 [O]
    levels: Tensor | None  # int8 [tables, 2^bits]
    zero_point: Tensor | None  # uint8 [O, groups]


def read_state(form: StateForm, tensors: Mapping[str, object], prefix: str) -> LayerState:
    """The state that ``tensors`` hold.

    Args:
        form: what it must consist of.
        tensors: a tensor for each of ``form.members``. Scales of groups may be bfloat16, as they
            are in files.
        prefix: of the names in messages, "" or with a dot at its end.

    Raises:
        StateError: a tensor is not what the layer needs.
    """
    rows, bits = form.shape[0], form.bits
    groups = ops.lowbit_groups(form.shape[1], form.group_size)
    codes = _codes(form, tensors["weight_packed"], f"{prefix}weight_packed")
    scale = _scale(form, tensors["weight_scale"], groups, f"{prefix}weight_scale")
    bias = levels = zero_point = None
    if form.has_bias:
        bias = _array(tensors["bias"], f"{prefix}bias", (rows,), torch.float32)
        _refuse(~bias.isfinite(), bias, f"{prefix}bias", "finite numbers")
    if form.has_levels:
        name = f"{prefix}weight_levels"
        tables = -(-rows // TABLE_CHANNELS)
        levels = _array(tensors["weight_levels"], name, (tables, 2**bits), torch.int8)
        _refuse(levels < -127, levels, name, "levels of at least -127")
        _refuse(levels[:, 1:] < levels[:, :-1], levels[:, 1:], name, "ascending levels")
    if not form.symmetric:
        name = f"{prefix}weight_zero_point"
        zero_point = _array(tensors["weight_zero_point"], name, (rows, groups), torch.uint8)
        _refuse(zero_point > 2**bits - 1, zero_point, name, f"0..{2**bits - 1}")
    wide = spread_zero_point(zero_point, form.group_size, form.shape[1])
    return LayerState(values_of(codes, bits, levels, wide), scale, bias, levels, zero_point)


def read_range(scale: object, zero_point: object, bits: object, name: str) -> QParams:
    """The range of an activation.

    Args:
        scale: a number, or a tensor with one.
        zero_point: an integer, or a tensor with one.
        bits: width of its codes.
        name: of the activation, for messages.

    Raises:
        StateError: they are no range.
    """
    if type(bits) is not int or not 2 <= bits <= 8:
        raise StateError(f"{name}: expected activation bits in 2..8, got {describe(bits)}.")
    scale, zero_point = _number(scale), _number(zero_point)
    if type(scale) is not float or not _is_positive_normal(scale):
        raise StateError(
            f"{name}: expected a positive normal float32 as scale, got {describe(scale)}."
        )
    if type(zero_point) is not int or not 0 <= zero_point < 2**bits:
        raise StateError(
            f"{name}: expected a zero point in 0..{2**bits - 1}, got {describe(zero_point)}."
        )
    return QParams(scale, zero_point, bits)


def _codes(form: StateForm, packed: object, name: str) -> Tensor:
    bits = form.bits
    row = (math.prod(form.shape[1:]) * bits + 7) // 8
    packed = _array(packed, name, (form.shape[0], row), torch.uint8)
    codes = ops.unpack_bits(packed, form.shape, bits)
    if not torch.equal(ops.pack_bits(codes, bits), packed):
        raise StateError(f"{name}: expected padding bits of 0, got others.")
    if form.symmetric and not form.has_levels and bits >= 5:
        least = -(2 ** (bits - 1) - 1)
        _refuse(codes < least, codes, name, f"codes of at least {least}")
    return codes


def _scale(form: StateForm, scale: object, groups: int, name: str) -> Tensor:
    shape = (form.shape[0], groups) if form.group_size else (form.shape[0],)
    dtypes = (torch.float32, torch.bfloat16) if form.group_size else (torch.float32,)
    scale = _array(scale, name, shape, *dtypes).to(torch.float32)
    # Panels of packed weights hold positive scales alone.
    size, kind = (scale, "positive normal") if form.packed else (scale.abs(), "normal")
    _refuse(~(scale.isfinite() & (size >= MIN_SCALE)), scale, name, f"finite {kind} numbers")
    if form.group_size:
        _refuse(scale.bfloat16().float() != scale, scale, name, "bfloat16 numbers")
    return scale


def _array(x: object, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
    """``x`` as a tensor of one of the types and of the shape."""
    try:
        checks.check_tensor(x, name)
    except (TypeError, ValueError) as error:
        raise StateError(str(error)) from None
    assert isinstance(x, Tensor)
    if x.dtype not in dtypes or tuple(x.shape) != shape:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(x.dtype).removeprefix("torch.")
        raise StateError(
            f"{name}: expected {names} of shape {shape}, got {got} of shape {tuple(x.shape)}."
        )
    return x.detach()


def _refuse(bad: Tensor, x: Tensor, name: str, expected: str) -> None:
    """StateError with the first number of ``x`` that is bad."""
    if bool(bad.any()):
        index = bad.nonzero()[0].tolist()
        got = x[tuple(index)].item()
        where = index[0] if len(index) == 1 else index
        raise StateError(f"{name}: expected {expected}, got {got} at index {where}.")


def _number(x: object) -> object:
    """The number in a tensor that has one; anything else as it is."""
    return x.item() if isinstance(x, Tensor) and x.numel() == 1 and x.device.type == "cpu" else x


def _is_positive_normal(scale: float) -> bool:
    """Whether it is a float32 that is positive and not denormal."""
    return (
        MIN_SCALE <= scale < math.inf and float(torch.tensor(scale, dtype=torch.float32)) == scale
    )
