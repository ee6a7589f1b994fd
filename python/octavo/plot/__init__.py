"""Pictures of what octavo does, drawn with matplotlib (``pip install "octavo[plot]"``).

`levels` draws a grid over a layer's weights. Results have plots of their own:
`octavo.sensitivity(...).plot()`, `octavo.pareto_front(...).plot()`, `octavo.report(...).plot()`.
All give a matplotlib Figure: a notebook shows it, ``figure.savefig("name.png")`` writes it.
"""

from octavo.plot.levels import levels

__all__ = ["levels"]
