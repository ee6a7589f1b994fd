"""Level grids: which real values the codes of a weight stand for. One row each in `GRIDS`."""

from __future__ import annotations

__all__ = ["GRIDS"]

GRIDS: tuple[str, ...] = ("linear",)
"""Names of the grids. linear: real = code * scale."""
