"""Measured figures, each kept once: figures.json beside this file.

`advise` cites them and derives speeds from them. The tables of README.md and
benchmarks/README.md must hold the same figures: tests/repo/test_figures.py.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["figure", "tables"]


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
    """Name of a table to its "columns" and its "rows", lists of text."""
    text = Path(__file__).with_name("figures.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def figure(table: str, row: tuple[str, ...], column: str, place: int = 0) -> str:
    """One figure as the tables print it, without a percent sign.

    Args:
        table: name of a table in figures.json.
        row: beginnings of the row's first cells; exactly one row must match them.
        column: head of the column.
        place: which figure of a cell that holds several, in the order of the widths.

    Raises:
        KeyError, ValueError, IndexError: there is no such table, row or column, or no such figure
            in the cell.
    """
    content = tables()[table]
    (cells,) = (
        cells
        for cells in content["rows"]
        if all(
            re.match(rf"{re.escape(start)}(?!\w)", cell)
            for start, cell in zip(row, cells, strict=False)
        )
    )
    text: str = cells[content["columns"].index(column)]
    return text.replace(";", ",").split(", ")[place].removesuffix(" %")
