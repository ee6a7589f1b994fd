"""The levels of a grid over the weights of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from octavo.errors import describe
from octavo.nn.layer import QLayer
from octavo.nn.registry import quantized_class
from octavo.numerics.codes import Codes
from octavo.numerics.grids import GRIDS, TABLE_CHANNELS
from octavo.numerics.scheme import Scheme
from octavo.numerics.sqnr import sqnr
from octavo.plot.figure import COLOURS, new_figure, plain
from octavo.rounding.methods.nearest import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["levels"]


@torch.no_grad()
def levels(
    model: nn.Module | Tensor,
    layer: str | None = None,
    *,
    grid: str | Sequence[str] = "linear",
    bits: int = 4,
    group_size: int = 0,
) -> Figure:
    """A matplotlib figure: weights of a layer as a histogram, and over it the levels of each grid.

    Each weight is drawn in units of the largest level of its channel or group, so that all share
    one axis. Each row of the figure is one grid, with the signal-to-quantization-noise ratio of the
    whole weight. Grids whose levels differ every 64 channels show the first 64.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> figure = octavo.plot.levels(model, "0", grid=("linear", "nf"), bits=4)

    Args:
        model: a float model, one of its layers, or a weight [O, ...]; or a quantized layer or
            model, whose own levels are drawn, each as high as the share of its weights.
        layer: name of the layer where ``model`` is a model.
        grid: one of `octavo.grids()`, or several of them.
        bits: 2..8.
        group_size: inputs that share a scale, a multiple of 16; 0: all of an output channel.

    Raises:
        TypeError: no model, layer or weight.
        ValueError: no such layer or grid, a weight without channels.
        ImportError: matplotlib is missing.
    """
    found = _layer(model, layer)
    if isinstance(found, QLayer):
        return _of_quantized(found, layer or found.path)
    weight = found if isinstance(found, Tensor) else _weight(found, layer)
    if weight.dim() < 2 or not weight.numel() or not weight.is_floating_point():
        raise ValueError(
            "plot.levels: model must be a float weight [O, ...] with values, got "
            f"{weight.dtype} of shape {list(weight.shape)}. Use the weight of a layer."
        )
    names = (grid,) if isinstance(grid, str) else tuple(grid)
    for name in names:
        if name not in GRIDS:
            raise ValueError(
                f"plot.levels: grid must be one of {', '.join(GRIDS)}, got {describe(name)}. "
                'Use for example "nf".'
            )
    weight = weight.detach().float()
    codes = {name: nearest(weight, None, Scheme(bits, name, group_size)) for name in names}
    figure = new_figure(7.0, 0.9 + 1.6 * len(names))
    rows = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for index, (axes, name) in enumerate(zip(rows, names, strict=True)):
        _draw(axes, weight, codes[name], COLOURS[index % len(COLOURS)])
        ratio = sqnr(weight, codes[name].dequantize())
        noise = "exact" if ratio is None else f"SQNR {ratio:.1f} dB"
        axes.set_title(f"{name}, {bits} bits: {noise}", fontsize=10, loc="left")
        plain(axes)
    rows[-1].set_xlabel(f"weight / largest level of its {'group' if group_size else 'channel'}")
    figure.supylabel("density of weights", fontsize=10)
    if layer:
        figure.suptitle(f"{layer}: {list(weight.shape)}", fontsize=10)
    return figure


def _layer(model: object, layer: str | None) -> nn.Module | Tensor:
    if isinstance(model, Tensor):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"plot.levels: model must be an nn.Module or a weight, got {describe(model)}. Pass for "
            "example model.fc."
        )
    if layer is None:
        return model
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if layer not in modules:
        known = [name for name, m in modules.items() if _is_layer(m)]
        more = ", ..." if len(known) > 8 else ""
        raise ValueError(
            f"plot.levels: layer must be the name of a layer, got {describe(layer)}. Layers that "
            f"there are: {', '.join(known[:8])}{more}."
        )
    return modules[layer]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, QLayer) or quantized_class(module)[0] is not None


def _weight(module: nn.Module, layer: str | None) -> Tensor:
    quantized, reason = quantized_class(module)
    if quantized is None:
        names = [name for name, m in module.named_modules() if name and _is_layer(m)]
        hint = f"Name one of its layers: layer={names[0]!r}." if names else f"{reason}."
        where = f"layer {layer!r}" if layer else "model"
        raise ValueError(
            f"plot.levels: {where} must be a layer with weights, "
            f"got {type(module).__name__}. {hint}"
        )
    return quantized.canonical_weight(module)


def _draw(axes: object, weight: Tensor, codes: Codes, colour: str) -> None:
    """The histogram and the levels of the channels that share the first table."""
    rows = weight.flatten(1)
    scale = codes.spread().abs()
    table = _levels(codes)
    if codes.levels is not None and bool((codes.levels != codes.levels[0]).any()):
        rows, scale = rows[:TABLE_CHANNELS], scale[:TABLE_CHANNELS]
    top = float(table.abs().max())
    values = (rows / (scale * top)).flatten().clamp(-1.3, 1.3)
    axes.hist(values.numpy(), bins=121, range=(-1.3, 1.3), density=True, color="#bbbbbb")  # type: ignore[attr-defined]
    for level in sorted(set(table.tolist())):
        axes.axvline(level / top, color=colour, linewidth=1.2)  # type: ignore[attr-defined]
    axes.set_xlim(-1.32, 1.32)  # type: ignore[attr-defined]


def _levels(codes: Codes) -> Tensor:
    if codes.levels is not None:
        return codes.levels[0].float()
    return torch.arange(codes.scheme.qmin, codes.scheme.qmax + 1).float()


def _of_quantized(layer: QLayer, name: str) -> Figure:
    """Share of the weights at each level."""
    counts = torch.bincount(layer.level_values().flatten().int() + 128, minlength=256)
    figure = new_figure(7.0, 2.8)
    axes = figure.subplots()
    found = counts.nonzero().flatten()
    share = 100 * counts[found] / counts.sum()
    found = found - 128
    axes.vlines(found.numpy(), 0, share.numpy(), color=COLOURS[0], linewidth=1.5)
    axes.plot(found.numpy(), share.numpy(), "o", color=COLOURS[0], markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("level (an integer; times the scale of its channel it is the weight)")
    axes.set_ylabel("weights, %")
    axes.set_title(
        f"{name or type(layer).__name__}: {layer.bits} bits, {layer.grid}", fontsize=10, loc="left"
    )
    plain(axes)
    return figure
