"""What a quantized model is made of: every layer, how it runs and why, and what it costs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from octavo import library
from octavo.data import Batches
from octavo.errors import describe
from octavo.files.atomic_file import write_text
from octavo.interrupts import held_back, let_through
from octavo.nn.kept_state import state_kept
from octavo.nn.layer import QLayer
from octavo.nn.surgery import copy_model
from octavo.numerics.sqnr import bytes_of, decibels
from octavo.plot.report import plot_report
from octavo.prepare.fold import fold
from octavo.reporting import html
from octavo.reporting.multiplies import Multiplies, count_multiplies
from octavo.reporting.record import LayerRecord, Record, record_of
from octavo.runtime.captured_forward import captured_forward
from octavo.signature import known_arguments
from octavo.types import Data, FilePath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Report",
    "Row",
    "report",
    "resident_bytes",
    "size_text",
]


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer: its record, the bytes it takes now, and the SQNR of its output (dB)."""

    layer: LayerRecord
    bytes: int
    output_sqnr: float | None


@dataclasses.dataclass(frozen=True)
class Report:
    """A quantized model in figures. `str` gives the table, `to_dict` plain JSON data.

    A notebook shows it as a table with bars; `save_html` writes that to a file, `plot` draws it.

    Attributes:
        float_bytes: parameters and buffers of the float model.
        bytes: everything the quantized model keeps in memory.
        multiplies: multiply-adds of one call; None without data.
        output_sqnr: SQNR of the model's output against the reference in dB; None without one.
    """

    model: str
    isa: str
    rows: tuple[Row, ...]
    float_bytes: int
    bytes: int
    multiplies: Multiplies | None
    output_sqnr: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return _text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.page(*_html(self))

    def save_html(self, path: FilePath) -> None:
        """Writes the report to a file that any browser shows.

        What was at ``path`` is replaced when the file is complete, not before.

        Raises:
            OSError: the file cannot be written, or ``path`` is no regular file.
        """
        text = html.document(f"octavo: {self.model}", *_html(self))
        write_text(path, text, f"save_html: {describe(os.fspath(path))}")

    def plot(self) -> Figure:
        """A matplotlib figure: bytes and SQNR of every layer."""
        return plot_report(self)


@held_back()
@known_arguments
def report(
    model: nn.Module, data: Data | None = None, *, reference: nn.Module | None = None
) -> Report:
    """The report of a quantized model.

    Example:
        >>> import torch, octavo
        >>> small = octavo.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)).eval(), 8)
        >>> print(octavo.report(small).rows[0].layer.bits)
        8

    Args:
        model: result of `quantize` or `load`.
        data: batches as for `quantize`; with them multiply-adds are counted where they are executed
          (first batch).
        reference: the float model. With it and data, every layer's output is compared with the
            float one (signal-to-quantization-noise ratio in dB, errors of earlier layers included).
            Without it the column holds what `quantize` measured on the calibration data.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: model was not quantized by octavo, or there is a reference but no data.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"report: model must be a quantized nn.Module, got {describe(model)}. Pass the result "
            "of octavo.quantize."
        )
    record = record_of(model)
    if record is None:
        raise ValueError(
            "report: model must be the result of octavo.quantize or octavo.load, "
            f"got a {type(model).__name__} without octavo's record. "
            "Pass the quantized model itself, not a part of it."
        )
    if reference is not None and data is None:
        raise ValueError(
            "report: data must be batches where a reference is given, got None. Pass data=batches."
        )
    measured: dict[str, float] = {}
    multiplies, output = None, None
    if data is not None:
        batches = Batches(data, samples=1 if reference is None else math.inf)
        multiplies = count_multiplies(model, batches)
        if reference is not None:
            measured, output = _compare(model, reference, batches, record)
    rows = tuple(
        Row(layer, _layer_bytes(model, layer.name), measured.get(layer.name, layer.output_sqnr))
        for layer in record.layers
    )
    return Report(
        type(model).__name__,
        library.isa(),
        rows,
        record.float_bytes,
        resident_bytes(model),
        multiplies,
        output,
        record.notes,
    )


def resident_bytes(model: nn.Module) -> int:
    """Bytes behind the model's parameters, buffers, panels and region constants, each once."""
    return bytes_of(_tensors_of(model))


def _layer_bytes(model: nn.Module, name: str) -> int:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return 0
    return bytes_of(_own_tensors(module))


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from _own_tensors(module)


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from (p for p in module._parameters.values() if p is not None)
    yield from (b for b in module._buffers.values() if b is not None)
    for value in module.__dict__.values():
        if isinstance(value, Tensor):
            yield value
    runtime = captured_forward(module)
    if runtime is not None:
        yield from runtime.tensors()


def _compare(
    model: nn.Module, reference: nn.Module, batches: Batches, record: Record
) -> tuple[dict[str, float], float | None]:
    """SQNR of every named layer's output and of the model's own, over all batches.

    The reference is folded first, as the model was: the output of a convolution is that after its
    BatchNorm. Channels that `quantize` rescaled are compared in the scale of the reference.
    """
    names = [layer.name for layer in record.layers]
    equalized = {layer.name for layer in record.layers if layer.equalized}
    reference = copy_model(reference).eval()
    fold(reference, batches.example(reference))
    layers = {name: _Noise() for name in names}
    whole = _Noise()
    for call in batches.calls(model):
        with torch.no_grad():
            with state_kept(reference), _recorded(reference, names) as wanted:
                expected = let_through(reference, *call.args, **call.kwargs)
            with state_kept(model), _recorded(model, names) as got:
                let_through(model, *call.args, **call.kwargs)
            with state_kept(model):
                output = let_through(model, *call.args, **call.kwargs)
        for name in names:
            for one, other in zip(wanted[name], got[name], strict=False):
                alike = name in equalized and one.shape == other.shape
                layer = model.get_submodule(name)
                layers[name].add(one, _in_scale_of(one, other, layer) if alike else other)
        if isinstance(expected, Tensor):
            whole.add(expected, output)
    measured = {name: noise.decibels for name, noise in layers.items()}
    return {name: ratio for name, ratio in measured.items() if ratio is not None}, whole.decibels


def _in_scale_of(wanted: Tensor, got: Tensor, layer: nn.Module) -> Tensor:
    """``got`` with each channel divided by its least-squares gain over ``wanted``."""
    spatial = len(layer.weight_shape) - 2 if isinstance(layer, QLayer) else 0
    over = [d for d in range(got.dim()) if d != got.dim() - 1 - spatial]
    gain = (got * wanted).sum(over, keepdim=True) / wanted.square().sum(over, keepdim=True)
    return got / torch.where(gain > 0, gain, torch.ones_like(gain))


class _Noise:
    """Sums for a signal-to-noise ratio."""

    def __init__(self) -> None:
        self._power = 0.0
        self._noise = 0.0

    def add(self, wanted: Tensor, got: Tensor) -> None:
        if wanted.shape == got.shape:
            self._power += float(wanted.square().sum(dtype=torch.float64))
            self._noise += float((wanted - got).square().sum(dtype=torch.float64))

    @property
    def decibels(self) -> float | None:
        return decibels(self._power, self._noise)


@contextlib.contextmanager
def _recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Outputs of the named modules, in the order of calls, while the context lasts."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name].append(output.detach().clone())  # A later layer may write in place.

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


# ---- text and HTML -------------------------------------------------------------------------------


_HEADER = (
    "layer",
    "kind",
    "bits",
    "grid",
    "scale per",
    "activations",
    "where",
    "bytes",
    "now",
    "SQNR",
)


def _text(report: Report) -> str:
    table = align([_HEADER, *map(_cells, report.rows)], right={2, 7, 8, 9})
    return "\n".join([table, "", *_totals(report)])


def _totals(report: Report) -> list[str]:
    quantized = sum(1 for row in report.rows if row.layer.bits)
    totals = [
        f"{report.model}: {quantized} of {len(report.rows)} layers in integers, instruction set "
        f"{report.isa}",
        f"memory: {size_text(report.float_bytes)} float, {size_text(report.bytes)} now "
        f"({report.float_bytes / max(report.bytes, 1):.2f} times smaller)",
    ]
    if report.multiplies:
        totals.append(
            f"multiply-adds in integers: {100 * report.multiplies.integer_share:.2f} % of "
            f"{report.multiplies.integer + report.multiplies.floating:,}"
        )
    if report.output_sqnr is not None:
        totals.append(f"output against the float model: {report.output_sqnr:.1f} dB")
    return [*totals, *report.notes]


def _html(report: Report) -> list[str]:
    """The totals and the table, sizes and noise as bars."""
    largest = max((row.layer.float_bytes for row in report.rows), default=0) or 1
    lines = []
    for row in report.rows:
        *texts, before, now, noise = _cells(row)
        shown: list[str | html.Bar] = [
            *texts,
            html.Bar(before, row.layer.float_bytes / largest, "orange"),
            html.Bar(now, row.bytes / largest),
            html.Bar(noise, (row.output_sqnr or 0.0) / 60) if noise else "",
        ]
        lines.append(shown)
    totals = [f"<p>{escape(text)}</p>" for text in _totals(report)]
    return [*totals, html.table(_HEADER, lines, right={2})]


def _cells(row: Row) -> tuple[str, ...]:
    layer = row.layer
    where = f"region {layer.region}" if layer.region else "alone" if layer.bits else "float"
    if layer.reason:
        where += f": {layer.reason}"
    return (
        layer.name or "(model)",
        layer.type,
        str(layer.bits) if layer.bits else "float",
        layer.grid,
        layer.granularity,
        layer.activations,
        where,
        str(layer.float_bytes),
        str(row.bytes),
        "" if row.output_sqnr is None else f"{row.output_sqnr:.1f}",
    )


def align(lines: list[tuple[str, ...]], right: set[int]) -> str:
    """A table as text: columns of equal width, with a rule below the first line.

    Args:
        lines: the cells of each line, the header first.
        right: numbers of the columns whose cells are aligned at the right.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def size_text(count: int) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024 or unit == "MiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024  # type: ignore[assignment]
    raise AssertionError
