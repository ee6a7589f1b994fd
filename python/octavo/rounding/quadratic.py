"""Codes that minimise a quadratic error: GPTQ's pass, then descent one column at a time.

The error of a row w of weights is (q - w) H (q - w)^T, with H the second moments of the inputs
around their mean: what the mean does to the output is the bias's to correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.interrupts import check
from octavo.numerics.grids import Snap
from octavo.numerics.scheme import MIN_SCALE, Scheme

__all__ = ["Moments", "Problem"]

_DAMPING = 0.01  # Of the mean diagonal (IST-DASLab/gptq).
_BLOCK = 128
_SWEEPS = 4


class Moments:
    """Sums from which second moments around the mean follow, of inputs and of wanted outputs.

    Sums are of what lies off the means of the first rows: where values hardly differ, their squares
    in float32 would leave nothing of the differences, or less than nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self.xx: Tensor | float = 0.0
        self.xy: Tensor | float = 0.0
        self.x: Tensor | float = 0.0
        self.y: Tensor | float = 0.0
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in inputs [G, N, K] and outputs [G, N, R] of G groups."""
        if not x.shape[1]:
            return
        if self._origin is None:
            self._origin = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - self._origin[0], y - self._origin[1]
        self.count += x.shape[1]
        self.xx = self.xx + (x.mT @ x).double()
        self.xy = self.xy + (x.mT @ y).double()
        self.x = self.x + x.sum(1, dtype=torch.float64)
        self.y = self.y + y.sum(1, dtype=torch.float64)

    def centered(self) -> tuple[Tensor, Tensor]:
        """float64 [G, K, K] and [G, K, R]."""
        assert isinstance(self.x, Tensor) and isinstance(self.y, Tensor)
        x, n = self.x[:, :, None] / self.count, self.count
        return self.xx / n - x @ x.mT, self.xy / n - x @ self.y[:, None] / n

    def means(self) -> tuple[Tensor, Tensor]:
        """float64 [G, K] and [G, R]."""
        assert isinstance(self.x, Tensor) and isinstance(self.y, Tensor) and self._origin
        x, y = self._origin
        return x[:, 0].double() + self.x / self.count, y[:, 0].double() + self.y / self.count


@dataclass(frozen=True, eq=False)
class Problem:
    """Weights of G groups of rows to be rounded.

    Attributes:
        wanted: float32 [G, R, K].
        h: float32 [G, K, K], damped.
        snapped: rounds to the levels.
    """

    wanted: Tensor
    h: Tensor
    snapped: Snap

    @classmethod
    def of(
        cls,
        wanted: Tensor,
        moments: Tensor,
        scheme: Scheme,
        levels: Tensor | None = None,
        zero_point: Tensor | None = None,
    ) -> Problem:
        """The problem for second moments [G, K, K]; they get a hundredth of their mean diagonal."""
        h = moments.double().clone()
        diagonal = h.diagonal(dim1=1, dim2=2)
        mean = diagonal.mean(1, keepdim=True)
        diagonal += torch.where(mean > 0, _DAMPING * mean, torch.ones_like(mean))
        return cls(wanted.float(), h.float(), Snap(scheme, levels, zero_point))

    def snap(self, u: Tensor, column: int | None = None) -> Tensor:
        """Nearest levels of [G, R, K], or of [G, R, 1] of one column, in units of the scale."""
        return self.snapped(u.reshape(-1, u.shape[2]), column=column).view(u.shape)

    def errors(self, real: Tensor) -> Tensor:
        """[G, R]: the quadratic error of each row."""
        off = real - self.wanted
        return ((off @ self.h) * off).sum(2)

    def pass_errors_on(self, scale: Tensor) -> Tensor:
        """Codes by GPTQ: column after column, the error of each spread over those that follow.

        Frantar et al., "GPTQ" (2022), algorithm 1. Columns by descending diagonal (act-order), but
        in their own order in grouped convolutions.

        Args:
            scale: float32 [G, R, 1] or [G, R, K].

        Returns:
            float32 integers [G, R, K].
        """
        groups, rows, columns = self.wanted.shape
        order = torch.arange(columns)
        if groups == 1:
            order = self.h[0].diagonal().argsort(descending=True)
        w = self.wanted[:, :, order].clone()
        s = scale.expand(groups, rows, columns)[:, :, order]
        h = self.h[:, order][:, :, order].double()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        upper = torch.linalg.cholesky(inverse, upper=True).float()
        codes = torch.empty_like(w)
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            check()
            errors = torch.empty(groups, rows, stop - start, dtype=torch.float32)
            for j in range(start, stop):
                u = w[:, :, j : j + 1] / s[:, :, j : j + 1]
                codes[:, :, j : j + 1] = self.snap(u, int(order[j]))
                error = w[:, :, j] - codes[:, :, j] * s[:, :, j]
                error /= upper[:, j, j, None]
                w[:, :, j:stop] -= error[:, :, None] * upper[:, None, j, j:stop]
                errors[:, :, j - start] = error
            w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
        result = torch.empty_like(codes)
        result[:, :, order] = codes
        return result

    def descend(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Codes after one sweep: each in turn becomes the best one given all others of its row.

        Args:
            codes: float32 integers [G, R, K].
            scale: float32 [G, R, 1] or [G, R, K].
        """
        groups, rows, columns = self.wanted.shape
        s = scale.expand(groups, rows, columns)
        codes = codes.clone()
        slope = (codes * s - self.wanted) @ self.h
        diagonal = self.h.diagonal(dim1=1, dim2=2)
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            check()
            steps = torch.empty(groups, rows, stop - start, dtype=torch.float32)
            local = slope[:, :, start:stop].clone()
            for j in range(start, stop):
                at = s[:, :, j]
                best = codes[:, :, j] - local[:, :, j - start] / (diagonal[:, j, None] * at)
                new = self.snap(best[:, :, None], j)[:, :, 0]
                step = (new - codes[:, :, j]) * at
                codes[:, :, j] = new
                local += step[:, :, None] * self.h[:, None, j, start:stop]
                steps[:, :, j - start] = step
            slope += steps @ self.h[:, start:stop]
        return codes

    def fitted_scale(self, codes: Tensor, scale: Tensor, size: int = 0) -> Tensor:
        """The scale with the smallest error for given codes, of the shape of ``scale``.

        Least squares; a scale that would not be positive stays as it is. Scales of groups are
        fitted one after the other and rounded to bfloat16.

        Args:
            codes: float32 integers [G, R, K].
            scale: float32 [G, R, 1], or [G, R, K] where groups of inputs share one.
            size: inputs that share a scale; 0: all of a row.
        """
        if not size:
            moved = codes @ self.h
            new = (moved * self.wanted).sum(2, keepdim=True) / (moved * codes).sum(2, keepdim=True)
            return torch.where(new > MIN_SCALE, new, scale)
        scale = scale.clone()
        slope = (codes * scale - self.wanted) @ self.h
        for start in range(0, codes.shape[2], size):
            part = slice(start, start + size)
            own = codes[:, :, part]
            curvature = ((own @ self.h[:, part, part]) * own).sum(2, keepdim=True)
            old = scale[:, :, start : start + 1]
            new = old - (slope[:, :, part] * own).sum(2, keepdim=True) / curvature
            new = torch.where(new > MIN_SCALE, new, old).bfloat16().float()
            slope += ((new - old) * own) @ self.h[:, part]
            scale[:, :, part] = new
        return scale

    def solve(self, scale: Tensor, size: int = 0, fits: bool = True) -> tuple[Tensor, Tensor]:
        """Codes, float32 integers [G, R, K], and their scale, of the shape of ``scale``.

        GPTQ's pass, then four times: fit the scale, and descend.

        Args:
            scale: float32 [G, R, 1], or [G, R, K] where groups of inputs share one.
            size: inputs that share a scale; 0: all of a row.
            fits: whether scales may change.
        """
        codes = self.pass_errors_on(scale)
        for _ in range(_SWEEPS):
            if fits:
                scale = self.fitted_scale(codes, scale, size)
            codes = self.descend(codes, scale)
        return codes, scale
