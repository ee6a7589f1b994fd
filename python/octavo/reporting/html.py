"""Results as HTML: tables with bars in their cells, for notebooks and for files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["Bar", "document", "page", "rows", "table"]

# Blue and orange of Okabe and Ito's palette, which the colour-blind tell apart, on white and black.
_STYLE = """
.octavo table{border-collapse:collapse;font:13px/1.4 system-ui,sans-serif;margin:.5em 0}
.octavo th,.octavo td{padding:.15em .6em;text-align:left;vertical-align:top}
.octavo th{border-bottom:1px solid currentColor;white-space:nowrap}
.octavo .right{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.octavo code{font:12px/1.4 ui-monospace,monospace}
.octavo .bar{position:relative;min-width:7em;height:1em;white-space:nowrap}
.octavo .bar i{position:absolute;left:0;height:.9em;opacity:.35}
.octavo .bar b{position:absolute;left:.3em;font-weight:normal}
.octavo p{font:13px/1.5 system-ui,sans-serif;margin:.2em 0}
"""


class Bar:
    """A cell whose text stands on a bar.

    Args:
        text: of the cell.
        share: length of the bar as a share of the cell's width, 0..1.
        colour: "blue" or "orange".
    """

    _COLOURS: Mapping[str, str] = {"blue": "#0072b2", "orange": "#e69f00"}

    def __init__(self, text: str, share: float, colour: str = "blue") -> None:
        self._text = escape(text)
        self._percent = 100 * min(max(share, 0.0), 1.0)
        self._colour = self._COLOURS[colour]

    def __str__(self) -> str:
        return (
            f'<div class="bar"><i style="width:{self._percent:.1f}%;background:{self._colour}">'
            f"</i><b>{self._text}</b></div>"
        )


def table(
    header: Sequence[str], lines: Iterable[Sequence[str | Bar]], right: Iterable[int] = ()
) -> str:
    """The HTML of a table.

    Args:
        header: the heads of the columns.
        lines: the cells of each line.
        right: numbers of the columns whose cells are aligned at the right.
    """
    at_right = set(right)

    def cells(kind: str, line: Sequence[str | Bar]) -> str:
        return "".join(
            f"<{kind}{' class=right' if i in at_right else ''}>"
            f"{cell if isinstance(cell, Bar) else escape(cell)}</{kind}>"
            for i, cell in enumerate(line)
        )

    body = "".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def rows(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and texts."""
    body = "".join(
        f"<tr><td><b>{escape(name)}</b></td><td>{escape(text)}</td></tr>" for name, text in pairs
    )
    return f"<table><tbody>{body}</tbody></table>"


def page(*parts: str) -> str:
    """Parts with their style, for a notebook's cell."""
    return f'<div class="octavo"><style>{_STYLE}</style>{"".join(parts)}</div>'


def document(title: str, *parts: str) -> str:
    """A file of its own."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"</head><body>{page(*parts)}</body></html>\n"
    )
