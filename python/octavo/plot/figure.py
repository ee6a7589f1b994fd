"""What all plots share: the optional matplotlib, colours that the colour-blind tell apart."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "new_figure", "plain"]

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which white swallows.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
# Told apart without colour too.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches, which a notebook shows and `savefig` writes.

    It is made without pyplot, so that nothing global changes and no window opens.
    """
    figure: Figure = _figure_class()(figsize=(width, height), layout="constrained")
    return figure


@functools.cache
def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise ImportError(
            f"octavo.plot: matplotlib must be installed for plots, got none ({error}). "
            "Run: pip install matplotlib"
        ) from error

    class ShownFigure(Figure):  # type: ignore[misc]
        """A figure that notebooks show although pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=110)
            return file.getvalue()

    return ShownFigure


def plain(axes: Axes) -> None:
    """Two spines and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
