"""Mixed widths: what each layer's width costs the output, and how to spend an average of bits."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from octavo.checks.model import check_model
from octavo.data import Batches, Call, float_tensors
from octavo.interrupts import check, held_back, let_through
from octavo.nn.kept_state import state_kept
from octavo.nn.registry import quantized_class
from octavo.nn.surgery import copy_model
from octavo.numerics.scheme import Scheme, default_group_size
from octavo.plot.sensitivity import plot_sensitivity
from octavo.prepare.fold import fold
from octavo.reporting import html
from octavo.rounding.methods.nearest import nearest
from octavo.signature import known_arguments
from octavo.types import Data, Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Sensitivity", "allocate", "measure_sensitivity", "sensitivity"]

WIDTHS = (2, 3, 4, 5, 6, 8)
SAMPLES = 32  # Of the data, all that is run.
_BUCKETS = 20_000


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer alone does to the output of the model.

    Attributes:
        costs: layer to {bits: squared error of the output over its square}; without data the error
            of the weight itself.
        sizes: layer to its number of weights.
        tied: layer to the first one of the same weight, where that is another: they have one width.
    """

    costs: Mapping[str, Mapping[int, float]]
    sizes: Mapping[str, int]
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        widths = sorted({bits for costs in self.costs.values() for bits in costs})
        longest = max(map(len, self.costs), default=5)
        lines = [f"{'layer':{longest}}  {'weights':>9}" + "".join(f"{b:>10}" for b in widths)]
        for name, costs in self.costs.items():
            cells = "".join(f"{costs.get(b, float('nan')):10.2e}" for b in widths)
            lines.append(f"{name:{longest}}  {self.sizes[name]:>9}{cells}")
        return "\n".join(lines)

    def allocate(self, average: float) -> dict[str, int]:
        """Bits of each layer, at most ``average`` a weight, with the smallest sum of costs."""
        costs: dict[str, dict[int, float]] = {}
        sizes: dict[str, int] = {}
        for name, own in self.costs.items():
            first = self.tied.get(name, name)
            together = costs.setdefault(first, dict.fromkeys(own, 0.0))
            for bits, cost in own.items():
                together[bits] += cost
            sizes[first] = sizes.get(first, 0) + self.sizes[name]
        widths = allocate(costs, sizes, average)
        return {name: widths[self.tied.get(name, name)] for name in self.costs}

    def front(self, averages: Sequence[float] = (2, 2.5, 3, 3.5, 4, 5, 6, 8)) -> str:
        """A table: average of bits, what the best allocation costs, and its widths."""
        lines = [f"{'average':>7}  {'spent':>6}  {'cost':>9}  layers of 2, 3, 4, 5, 6, 8 bits"]
        for average in averages:
            bits = self.allocate(average)
            spent = sum(self.sizes[n] * b for n, b in bits.items()) / sum(self.sizes.values())
            cost = sum(self.costs[n][b] for n, b in bits.items())
            counts = " ".join(f"{list(bits.values()).count(b):4}" for b in WIDTHS)
            lines.append(f"{average:7.2f}  {spent:6.3f}  {cost:9.2e}  {counts}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A matplotlib figure: cost of each layer at each width."""
        return plot_sensitivity(self.costs, self.sizes)

    def _repr_html_(self) -> str:
        widths = sorted({bits for costs in self.costs.values() for bits in costs})
        header = ["layer", "weights", *(f"{bits} bits" for bits in widths)]
        lines = [
            [name, f"{self.sizes[name]:,}", *(f"{costs.get(b, math.nan):.2e}" for b in widths)]
            for name, costs in self.costs.items()
        ]
        text = "<p>error of the output, of its power, with one layer alone in few bits</p>"
        return html.page(text, html.table(header, lines, right=range(1, len(header))))


@held_back()
@known_arguments
def sensitivity(
    model: nn.Module, data: Data | None = None, *, grid: Grid = "linear", progress: bool = True
) -> Sensitivity:
    """What each layer's width alone costs the output of the model.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 8)).eval()
        >>> found = octavo.sensitivity(model, torch.randn(64, 32), progress=False)
        >>> sorted(found.allocate(4.0))
        ['0', '1']

    Args:
        model: a float model; it stays as it is.
        data: batches as for `octavo.quantize`; the first 32 samples are run once for every layer
            and width. Without data the error of the weights stands for that of the output.
        grid: levels, one of `octavo.grids()`.
        progress: whether to show a bar on stderr.
    """
    check_model(model)
    batches = None if data is None else Batches(data, SAMPLES)
    work = copy_model(model).eval()
    example = None if batches is None else batches.example(work)
    found = fold(work, example).captured
    names = [site.name for site in found.sites if not site.reason]
    return measure_sensitivity(work, names, batches, grid, progress)


def measure_sensitivity(
    model: nn.Module, names: Sequence[str], batches: Batches | None, grid: str, progress: bool
) -> Sensitivity:
    """`sensitivity` of some layers of a folded model, which comes back as it was."""
    calls = [] if batches is None else _few(batches.recorded(model))
    wanted = [_outputs(model, call) for call in calls]
    power = sum(float(y.square().sum(dtype=torch.float64)) for ys in wanted for y in ys) or 1.0
    costs: dict[str, dict[int, float]] = {}
    sizes: dict[str, int] = {}
    label = "octavo: sensitivity"
    for name in tqdm(names, desc=label, unit="layer", disable=not progress, leave=False):
        module = model.get_submodule(name)
        quantized, _ = quantized_class(module)
        assert quantized is not None
        weight = quantized.canonical_weight(module).float()
        axis = quantized.channel_axis(module)
        sizes[name] = weight.numel()
        costs[name] = {}
        check()
        for bits in WIDTHS:
            size = default_group_size(bits, weight.shape[1]) if weight.dim() == 2 else 0
            real = nearest(weight, None, Scheme(bits, grid, size)).dequantize()
            if calls:
                with _Replaced(module, real.movedim(0, axis) if axis else real):
                    noise = sum(
                        float((y - z).square().sum(dtype=torch.float64))
                        for ys, call in zip(wanted, calls, strict=True)
                        for y, z in zip(ys, _outputs(model, call), strict=True)
                    )
                costs[name][bits] = noise / power
            else:
                noise = float((real - weight).square().sum(dtype=torch.float64))
                costs[name][bits] = noise / (float(weight.square().sum()) or 1.0)
    return Sensitivity(costs, sizes, _tied(model, names))


def _tied(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Layers to the first one of the same weight, where that is another."""
    first: dict[int, str] = {}
    owners = ((name, model.get_submodule(name)._parameters["weight"]) for name in names)
    found = {name: first.setdefault(id(weight), name) for name, weight in owners}
    return {name: owner for name, owner in found.items() if owner != name}


def allocate(
    costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], average: float
) -> dict[str, int]:
    """A width for each layer, with the smallest sum of costs within a budget.

    This is the multiple-choice knapsack problem, solved by dynamic programming over the budget in
    20,000 parts; sizes are rounded up to whole parts. Where not even the smallest widths fit, they
    are the result.

    Args:
        costs: layer to width to the error that this width alone causes.
        sizes: layer to its number of weights.
        average: most bits a weight, over all layers together.

    Returns:
        Layer to width.
    """
    total = sum(sizes.values())
    part = max(total * average / _BUCKETS, 1e-9)
    best = torch.zeros(_BUCKETS + 1, dtype=torch.float64)
    choices: list[Tensor] = []
    widths = {name: sorted(costs[name]) for name in costs}
    for name, own in costs.items():
        options = []
        for bits in widths[name]:
            used = int(-(-(sizes[name] * bits - 1e-6) // part))
            option = torch.full_like(best, torch.inf)
            if used <= _BUCKETS:
                option[used:] = best[: _BUCKETS + 1 - used] + own[bits]
            options.append(option)
        best, chosen = torch.stack(options).min(0)
        choices.append(chosen)
    if not bool(best[-1].isfinite()):  # Rounded-up sizes of the narrowest widths are too many.
        return {name: widths[name][0] for name in costs}
    left = _BUCKETS
    result: dict[str, int] = {}
    for name, chosen in zip(reversed(list(costs)), reversed(choices), strict=True):
        bits = widths[name][int(chosen[left])]
        result[name] = bits
        left -= int(-(-(sizes[name] * bits - 1e-6) // part))
    return {name: result[name] for name in costs}


class _Replaced:
    """A layer's weight replaced for a while, given in its own order."""

    def __init__(self, module: nn.Module, weight: Tensor) -> None:
        self._module = module
        self._old = module._parameters["weight"]
        assert self._old is not None
        self._new = weight.to(self._old.dtype)

    def __enter__(self) -> None:
        self._module._parameters["weight"] = nn.Parameter(self._new, requires_grad=False)

    def __exit__(self, *_error: object) -> None:
        self._module._parameters["weight"] = self._old


@torch.no_grad()
def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    """The floating-point tensors that a call returns."""
    arguments = copy.deepcopy((call.args, call.kwargs))  # A model may write into its inputs.
    with state_kept(model):
        outputs = let_through(model, *arguments[0], **arguments[1])
    return [tensor.float() for tensor in float_tensors(outputs)]


def _few(calls: list[Call]) -> list[Call]:
    """The first calls, together about 32 samples."""
    kept: list[Call] = []
    seen = 0
    for call in calls:
        left = SAMPLES - seen
        kept.append(call.shortened(left) or call)
        seen += kept[-1].samples
        if seen >= SAMPLES:
            break
    return kept
