"""Fake quantization in numpy, float64 wherever the contract does not say float32: what tests compare with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HARD = [0.0, -0.0, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 1e-45, 0.5, 1.5, 2.5, -0.5, -1.5]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Values with parameters in one of the granularities. scale and zero broadcast as `spread` does."""

    name: str
    x: Tensor
    scale: Tensor
    zero_point: Tensor | None
    qmin: int
    qmax: int
    axis: int | None = None
    group_size: int = 0

    def spread(self, parameter: Tensor | None) -> np.ndarray:
        """float64 of x's shape."""
        shape = self.x.shape
        if parameter is None:
            return np.zeros(shape)
        p = parameter.detach().double().numpy()
        if self.group_size:
            per_channel = self.x[0].numel()
            return np.repeat(p, self.group_size, axis=1)[:, :per_channel].reshape(shape)
        if self.axis is None:
            return np.broadcast_to(p.reshape(()), shape)
        ones = [1] * len(shape)
        ones[self.axis] = -1
        return np.broadcast_to(p.reshape(ones), shape)

    def gather(self, terms: np.ndarray) -> np.ndarray:
        """float64 sums over the values that share a parameter."""
        if self.group_size:
            flat = terms.reshape(terms.shape[0], -1)
            starts = np.arange(0, flat.shape[1], self.group_size)
            return np.add.reduceat(flat, starts, axis=1)
        if self.axis is None:
            return terms.sum().reshape(tuple(self.scale.shape))
        axis = self.axis % terms.ndim
        return terms.sum(tuple(d for d in range(terms.ndim) if d != axis))

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments of the operators."""
        return {
            "qmin": self.qmin,
            "qmax": self.qmax,
            "axis": self.axis,
            "group_size": self.group_size,
        }


@dataclass(frozen=True)
class Expected:
    """float64 arrays of max(x, 0) or x: t (float32 products), q - z, what lies inside, the result before narrowing."""

    scaled: np.ndarray
    codes: np.ndarray
    inside: np.ndarray
    y: np.ndarray


def expected(case: Case, relu: bool) -> Expected:
    """The contract: r = float32(1 / s), float32 product, clamp, nearest even; float32(q * s)."""
    x = case.x.detach().float().numpy().astype(np.float64)
    if relu:
        x = np.where(x <= 0, 0.0, x)
    scale, zero = case.spread(case.scale), case.spread(case.zero_point)
    r = (1.0 / scale).astype(np.float32).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (x * r).astype(np.float32).astype(np.float64)
        rounded = np.rint(scaled)
        low, high = case.qmin - zero, case.qmax - zero
        inside = (rounded >= low) & (rounded <= high)
        codes = np.where(np.isnan(scaled), np.nan, np.clip(rounded, low, high))
        y = (codes * scale).astype(np.float32)
    return Expected(scaled, codes, inside, y.astype(np.float64) + 0.0)


def same_bits(got: Tensor, want: np.ndarray | Tensor) -> bool:
    """Equal including the sign of zeros; NaN equals NaN. ``want`` is rounded to got's dtype."""
    wanted = want if isinstance(want, Tensor) else torch.from_numpy(np.ascontiguousarray(want))
    wanted = wanted.float().to(got.dtype)
    both = torch.isnan(got) & torch.isnan(wanted)
    zeros = torch.signbit(got) == torch.signbit(wanted)
    return bool((both | ((got == wanted) & zeros)).all()) and got.shape == wanted.shape


def zero_points(shape: tuple[int, ...], qmin: int, qmax: int) -> Tensor:
    return torch.randint(qmin, qmax + 1, shape).float()


def cases(size: int = 7) -> Iterator[Case]:
    """Every granularity, widths and signs, with hard values among ordinary ones."""

    def values(*shape: int) -> Tensor:
        x = torch.randn(*shape) * 2
        flat = x.view(-1)
        at = torch.randperm(flat.numel())[: len(HARD)]
        flat[at] = torch.tensor(HARD)[: len(at)]
        return x

    for qmin, qmax in ((0, 255), (-8, 7), (0, 3), (-127, 127), (-1, 0)):
        for affine in (False, True):
            spans = (
                ("tensor", values(3, size, 5), (1,), None, 0),
                ("scalar", values(size * 9), (), None, 0),
                ("outer", values(size, 4, 3, 3), (size,), 0, 0),
                ("middle", values(2, size, 5, 6), (size,), 1, 0),
                ("inner", values(6, 2 * size + 19), (2 * size + 19,), -1, 0),
                ("groups", values(size, 37), (size, 3), None, 16),
                ("groups of a convolution", values(size, 8, 3, 3), (size, 3), None, 32),
            )
            for name, x, shape, axis, group_size in spans:
                zero = zero_points(shape, qmin, qmax) if affine else None
                scale = torch.rand(shape) * 0.2 + 0.01
                label = f"{name} {qmin}..{qmax}{' affine' if affine else ''}"
                yield Case(label, x, scale, zero, qmin, qmax, axis, group_size)


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in other memory layouts."""
    yield "contiguous", x
    if x.dim() == 4:
        yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    if x.dim() >= 2:
        yield "transposed", x.transpose(0, 1).contiguous().transpose(0, 1)
        wide = torch.randn(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        yield "sliced", wide[..., 1::2]


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def each(test: Callable[[Case, torch.dtype, bool], None]) -> None:
    """Runs ``test`` on all cases, dtypes and with and without ReLU; says which one fails."""
    for case, dtype, relu in itertools.product(list(cases()), DTYPES, (False, True)):
        narrow = Case(**{**case.__dict__, "x": case.x.to(dtype)})
        try:
            test(narrow, dtype, relu)
        except AssertionError as error:
            raise AssertionError(f"{case.name}, {dtype}, relu={relu}: {error}") from error
