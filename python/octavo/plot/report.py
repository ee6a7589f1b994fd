"""Bytes and noise of every layer of a quantized model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from octavo.plot.figure import COLOURS, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from octavo.reporting.report import Report

__all__ = ["plot_report"]


def plot_report(report: Report) -> Figure:
    """Bars of bytes before and now, and dots of the SQNR where it was measured."""
    rows = report.rows
    noise = any(row.output_sqnr is not None for row in rows)
    figure = new_figure(9.0 if noise else 6.5, min(1.3 + 0.24 * len(rows), 60.0))
    axes = figure.subplots(1, 2 if noise else 1, sharey=True, squeeze=False)[0]
    at = [float(i) for i in range(len(rows))]
    sizes = axes[0]
    sizes.barh(
        [y - 0.2 for y in at],
        [row.layer.float_bytes / 1024 for row in rows],
        0.4,
        color=COLOURS[1],
        label="float",
    )
    sizes.barh(
        [y + 0.2 for y in at],
        [row.bytes / 1024 for row in rows],
        0.4,
        color=COLOURS[0],
        label="now",
    )
    sizes.set_xlabel("KiB in memory")
    sizes.set_yticks(at, [row.layer.name or "(model)" for row in rows], fontsize=7)
    sizes.set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(
        *sizes.get_legend_handles_labels(),
        ncols=2,
        fontsize=8,
        frameon=False,
        loc="outside upper right",
    )
    if noise:
        values = [math.nan if row.output_sqnr is None else row.output_sqnr for row in rows]
        axes[1].plot(values, at, "o-", color=COLOURS[2], markersize=4, linewidth=0.8)
        axes[1].set_xlabel("SQNR of the layer's output, dB (higher is better)")
    for one in axes:
        plain(one)
    return figure
