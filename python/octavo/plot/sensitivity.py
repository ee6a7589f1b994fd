"""Cost of each layer at each width, as lines over the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from octavo.plot.figure import COLOURS, MARKERS, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_sensitivity"]


def plot_sensitivity(costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int]) -> Figure:
    """One line a width over all layers; below, the weights of each layer."""
    names = list(costs)
    width = min(max(6.0, 0.22 * len(names) + 2.0), 40.0)
    figure = new_figure(width, 5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    widths = sorted({bits for own in costs.values() for bits in own})
    at = range(len(names))
    for index, bits in enumerate(widths):
        heights = [costs[name].get(bits) or math.nan for name in names]  # A log axis has no 0.
        above.plot(
            at,
            heights,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1,
            label=f"{bits} bits",
        )
    above.set_yscale("log")
    above.set_ylabel("squared error of the output\n(1 = its own power)")
    above.set_title("one layer alone in few bits, all others in float", fontsize=10, loc="left")
    above.legend(ncols=1, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    below.bar(at, [sizes[name] for name in names], color="#888888")
    below.set_ylabel("weights")
    below.set_xticks(at, names, rotation=90, fontsize=7)
    below.set_xlim(-0.6, len(names) - 0.4)
    for axes in (above, below):
        plain(axes)
    return figure
