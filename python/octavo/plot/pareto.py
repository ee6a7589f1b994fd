"""Score over memory, file and time; the settings that no other beats are filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.plot.figure import COLOURS, MARKERS, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from octavo.advice.pareto import ParetoFront

__all__ = ["plot_front"]


def plot_front(front: ParetoFront) -> Figure:
    """Three scatter plots that share the scores; each setting has one colour and marker in all."""
    points = front.points
    figure = new_figure(11.0, max(3.6, 1.6 + 0.2 * len(points)))
    columns = figure.subplots(1, 3, sharey=True)
    axes_of = (
        ("memory, KiB", [p.bytes / 1024 for p in points]),
        ("file, KiB", [p.file_bytes / 1024 for p in points]),
        (f"time of a batch of {front.samples}, ms", [1e3 * p.seconds for p in points]),
    )
    for axes, (label, xs) in zip(columns, axes_of, strict=True):
        for index, (point, x) in enumerate(zip(points, xs, strict=True)):
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                x,
                point.score,
                marker=MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
                color=colour,
                markerfacecolor=colour if point.best else "white",
                markersize=8,
                linestyle="none",
                label=point.name,
            )
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.margins(y=0.08)
        plain(axes)
    columns[0].set_ylabel("score (higher is better)")
    figure.legend(
        *columns[0].get_legend_handles_labels(),
        loc="outside right center",
        fontsize=8,
        frameon=False,
        title="filled: no other beats it",
        title_fontsize=8,
    )
    return figure
