"""The public calls. `quantize` checks its arguments and runs one of two pipelines.

Each pipeline is a list of stages. One ends in a model that computes in integers, the other in a
trainee.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from octavo.checks import arguments
from octavo.checks.model import check_model
from octavo.data import Batches, Example
from octavo.deciding.decide import decide
from octavo.deciding.search import Search
from octavo.errors import describe
from octavo.graph.capture import Capture, capture
from octavo.graph.keys import RangeKey, SiteKey
from octavo.graph.reads import tensors_read
from octavo.interrupts import held_back
from octavo.lowering.rewrite import dequantize as _dequantize
from octavo.lowering.rewrite import rewrite, sums_are_finite
from octavo.nn.layer import QLayer
from octavo.nn.registry import canonical_weight, is_depthwise
from octavo.nn.surgery import copy_model, tensors_on_cpu, unharmed
from octavo.numerics.codes import Codes
from octavo.numerics.scheme import Activations, QParams
from octavo.numerics.sqnr import tensor_bytes
from octavo.ops.region_steps import PLANNED
from octavo.planning.plan import FlowPlan, Plan
from octavo.prepare.calibrate import calibrate, plan_keys, without_unreached
from octavo.prepare.equalize import equalize
from octavo.prepare.fold import fold
from octavo.prepare.smooth import smooth
from octavo.reporting.record import Record, attach, layer_records
from octavo.rounding import METHODS, Method, choose, correct_bias, round_model, rounded_plainly
from octavo.rounding.run import Rounded
from octavo.signature import known_arguments
from octavo.training.trainee import make_trainee
from octavo.types import (
    ActivationBits,
    Bits,
    Data,
    Effort,
    Evaluate,
    Grid,
    GroupSize,
    Model,
    Patterns,
    QatMethod,
    Ranges,
    Rounding,
)

__all__ = ["dequantize", "quantize"]


@held_back()
@known_arguments
def quantize(
    model: Model,
    bits: Bits = 8,
    data: Data | None = None,
    *,
    grid: Grid = "linear",
    activations: ActivationBits | None = None,
    group_size: GroupSize | None = None,
    symmetric: bool = True,
    rounding: Rounding | None = None,
    ranges: Ranges | None = None,
    effort: Effort = "balanced",
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    exclude: Patterns = (),
    include: Patterns | None = None,
    qat: bool = False,
    qat_method: QatMethod | None = None,
    inplace: bool = False,
    strict: bool = True,
    progress: bool = True,
) -> Model:
    """A model of the same class that computes in integers.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(),
        ...     torch.nn.Linear(64, 8)).eval()
        >>> small = octavo.quantize(model, 8)
        >>> fast = octavo.quantize(model, 8, data=[torch.randn(32, 64) for _ in range(4)])
        >>> fast(torch.randn(2, 64)).shape
        torch.Size([2, 8])

    Args:
        model: any float nn.Module on the CPU. It is not changed unless ``inplace``.
        bits: 2..8 for the weights of every layer; a pair (weights, activations); a mapping of
            names, globs, classes, "@first", "@last" to either, of which later entries replace
            earlier ones; a float, the average to be spent where it helps most; a `Plan`, or the
            Path of its JSON file.
        data: batches to calibrate with: a tensor, an iterable of tensors, tuples or mappings, or a
            callable that is given the model and runs it. With data activations are static and
            stretches of the network run in integers from end to end; without data, each row (each
            image) gets a range of its own in every call. What can be read only once (a generator)
            is kept in memory and must end within 20,000 batches and 4 GiB.
        grid: levels that codes stand for, one of `octavo.grids()`.
        activations: "dynamic", "float" (only weights are quantized), or the bits 2..8 of static
          ones (needs data). Default: 8 with data, else "dynamic".
        group_size: inputs that share a weight scale, a multiple of 16 from 16 to 256, in layers
            without a kernel (Linear, Embedding); such layers run outside of regions. Default: 128,
            64 or 32 for 2 to 4 bits in such layers outside of regions, else one scale for each
            output channel. "tensor": one scale for each whole weight.
        symmetric: False gives each weight scale a zero point, which fits weights whose range does
            not lie around 0: layers without a kernel, 2 to 7 bits, linear grid; such layers run
            outside of regions. Others stay symmetric.
        rounding: "nearest", "squant" or "hqq" (no data needed), "gptq", "adaround" or "qdrop" (need
            data). Default: chosen by bits, data and effort; the report names it.
        ranges: rule for static ranges: "typical" (squared error, of giants only as far as 99 of 100
            samples reach), "mse", "huber" (giants count linearly), "minmax" or "percentile".
            Default: "typical"; and without ``activations`` linear layers between floats have a
            range of each row where that halves the error of their inputs, as the report names.
        effort: "fast" rounds plainly and takes ranges as they are. "balanced" searches codes of few
            bits (of all widths in networks with depthwise convolutions), and with data corrects
            biases, equalizes channel ranges in networks with depthwise convolutions and moves
            activation outliers behind normalisations into weights. "best" learns the rounding of
            few bits block by block, and scales and biases for the outputs of the float model, which
            takes longer.
        exclude: names, globs or classes of layers to leave out.
        include: names, globs or classes of the only layers to quantize. Default: all.
        inplace: change and return ``model`` itself. If anything fails, it is restored.
        strict: whether a pattern that matches nothing, or nothing to quantize, is an error.
        progress: whether to show progress on stderr.
        evaluate: with max_drop, a function from a model to its score; higher is better.
        max_drop: how much of the float model's score may be lost. The smallest average of widths
            within this limit is searched, up to ``bits``; if there is none, the best model found is
            returned, and the report says so.
        qat: return a trainee instead: a copy that has the same Parameters as ``model`` and
            fake-quantizers exactly where the integer model stores values, for your own training
            loop and then `octavo.freeze`. Static ranges start from data; without data, activations
            are dynamic, or "float".
        qat_method: with qat, how ranges are found: "ste" (moving averages; adds no Parameters),
            "lsq", "lsq+", "pact" (trained steps, zero points, clips: `octavo.range_parameters`) or
            "dorefa". Default: "ste" for values and weights of 8 to 5 bits, "lsq" below.

    Raises:
        TypeError: an argument of the wrong kind, a batch that ``forward`` cannot take.
        ValueError: an argument out of range, a weight or an activation that is not finite, a model
          that is quantized.
        NothingQuantizedError: no layer was left to quantize.
        CalibrationError: no batches, no end of them, or no layer was reached by them.
    """
    arguments.check_choices(
        grid=grid, group_size=group_size, symmetric=symmetric, rounding=rounding, ranges=ranges,
        effort=effort, evaluate=evaluate, max_drop=max_drop, qat=qat, qat_method=qat_method,
        has_data=data is not None,
    )  # fmt: skip
    asked, how_stored, activation_bits = arguments.check_widths(bits, activations, data is not None)
    excluded = arguments.check_patterns("exclude", exclude)
    included = arguments.check_patterns("include", include)
    check_model(model, inplace)
    batches = None if data is None else Batches(data)
    if evaluate is not None and max_drop is not None:
        options: dict[str, Any] = {
            "grid": grid, "activations": activations, "group_size": group_size,
            "symmetric": symmetric, "rounding": rounding, "ranges": ranges, "effort": effort,
            "exclude": excluded, "include": included, "strict": strict, "progress": progress,
        }  # fmt: skip
        widest = arguments.check_search(bits, qat)
        again = None if batches is None else batches.source
        search = Search(model, again, evaluate, functools.partial(quantize, **options))
        narrowest = search.result(widest, float(max_drop), grid, inplace, progress)
        return cast(Model, narrowest)
    job = _Job(
        model=model, inplace=inplace, batches=batches, asked=asked, activations=how_stored,
        activation_bits=activation_bits, grid=grid, group_size=group_size, symmetric=symmetric,
        exclude=excluded, include=included, strict=strict, rounding=rounding,
        ranges=ranges or "typical", rows_allowed=activations is None and ranges is None
        and not isinstance(bits, tuple) and isinstance(activation_bits, int),
        effort=effort, qat_method=qat_method, progress=progress, notes=_Notes(progress),
    )  # fmt: skip
    with tensors_on_cpu(), unharmed(model) if inplace else contextlib.nullcontext():
        return cast(Model, _trainee(job) if qat else _integers(job))


@held_back()
@known_arguments
def dequantize(model: Model, inplace: bool = False) -> Model:
    """The quantized model in float again, with the weights that its integers stand for.

    Example:
        >>> import torch, octavo
        >>> small = octavo.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)).eval(), 8)
        >>> type(octavo.dequantize(small)[0]).__name__
        'Linear'

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: no layer of it is quantized.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"dequantize: model must be a quantized nn.Module, got {describe(model)}. Pass the "
            "model itself."
        )
    if not any(isinstance(module, QLayer) for module in model.modules()):
        raise ValueError(
            "dequantize: model must hold quantized layers, "
            f"got a {type(model).__name__} without any. Pass the result of octavo.quantize."
        )
    return cast(Model, _dequantize(model, inplace))


# How many times the squared error of a layer's input must fall for ranges of each row. Rows of a
# normal distribution give 1.7, MiniLM's 1.8 to 28.
_UNEVEN = 2.0
# The same where a table between two layers would leave the integers for it; MiniLM has 4.5 to 19.
_UNEVEN_INSIDE = 4.0
_Replan = Callable[[Mapping[str, str]], Plan]


@dataclass(frozen=True)
class _Job:
    """One call of `quantize`, its arguments checked.

    Attributes:
        model: the user's float model.
        inplace: whether it is changed and returned itself.
        batches: the data, None without.
        asked: patterns to widths of weights, an average, or a plan that decides everything.
        activations: how activations of all layers are stored.
        activation_bits: widths of static activations.
        exclude: patterns, checked.
        include: patterns, checked; None for all layers.
        rows_allowed: whether layers may have a range of each row where one for all fits badly.
        notes: messages for the user and for the report.
    """

    model: nn.Module
    inplace: bool
    batches: Batches | None
    asked: Mapping[Any, int] | float | Plan
    activations: Activations
    activation_bits: int | Mapping[Any, int]
    grid: Grid
    group_size: GroupSize | None
    symmetric: bool
    exclude: tuple[object, ...] | None
    include: tuple[object, ...] | None
    strict: bool
    rounding: Rounding | None
    ranges: Ranges
    rows_allowed: bool
    effort: Effort
    qat_method: QatMethod | None
    progress: bool
    notes: _Notes

    def example(self, work: nn.Module) -> Example:
        """The first call that the data makes of a model."""
        return None if self.batches is None else self.batches.example(work)


# ---- the two pipelines, each its stages in a row -------------------------------------------------


def _integers(job: _Job) -> nn.Module:
    """A model that computes in integers."""
    if job.model.training:
        job.notes.add("the model was in training mode; the quantized one is in evaluation mode")
    float_bytes = tensor_bytes(job.model)
    work = (job.model if job.inplace else copy_model(job.model)).eval()
    example = job.example(work)
    folded = fold(work, example)
    job.notes.add_all(f"{name} is computed once and kept" for name in folded.materialised)
    decided, flows, replan, read_elsewhere = _decided(job, work, folded.captured)
    divided = _moved(job, work, decided, flows, read_elsewhere)
    decided, params = _calibrated(job, work, decided, replan)
    how = _method(job, work, decided, divided)
    chosen = job.rounding is None and how.needs_data
    plainly = rounded_plainly(work, decided) if chosen and not how.blockwise else ()
    rounded = round_model(
        work, decided, how, qparams=params, data=job.batches, flows=flows, plainly=plainly,
        progress=job.progress,
    )  # fmt: skip
    job.notes.add_all([*rounded.notes, *_zero_channels(rounded.codes)])
    codes, output_sqnr = _corrected(job, work, decided, rounded, how)
    layers = layer_records(work, decided, codes, output_sqnr, divided)
    result = rewrite(work, decided, rounded.qparams, codes, inplace=True)
    attach(result, Record(layers, float_bytes, job.notes.said))
    return result


def _trainee(job: _Job) -> nn.Module:
    """A copy with the model's own Parameters and fake-quantizers, to be trained and frozen."""
    float_bytes = tensor_bytes(job.model)
    work = copy_model(job.model).eval()
    example = job.example(work)
    folded = fold(work, example, training=True)
    normed = frozenset(layer for _, layer in folded.batch_norms)
    found = capture(work, example, training=True)
    decided, flows, *_ = _decided(job, work, found, training=True, normed=normed)
    decided, params = _calibrated(job, work, decided)
    own = set(plan_keys(decided))  # Layers of regions share their regions' fake-quantizers.
    params = {key: p for key, p in params.items() if key in own}
    # For the report: training decides how weights round.
    rounded = round_model(
        work, decided, METHODS["nearest"], qparams=params, data=job.batches, flows=flows,
        progress=job.progress,
    )  # fmt: skip
    job.notes.add_all([*rounded.notes, *_zero_channels(rounded.codes)])
    layers = layer_records(work, decided, rounded.codes, {}, frozenset())
    result = make_trainee(
        job.model, decided, rounded.qparams, batch_norms=folded.batch_norms,
        float_bytes=float_bytes, method=job.qat_method, inplace=job.inplace,
    )  # fmt: skip
    attach(result, Record(layers, float_bytes, job.notes.said))
    return result


# ---- stages that ask the job ---------------------------------------------------------------------


def _decided(
    job: _Job,
    work: nn.Module,
    found: Capture,
    training: bool = False,
    normed: frozenset[str] = frozenset(),
) -> tuple[Plan, list[FlowPlan], _Replan | None, frozenset[str]]:
    """The plan; captured modules, rounded block by block; how layers get ranges of each row.

    And the tensors that more than their owners read.
    """
    if isinstance(job.asked, Plan):
        arguments.check_plan(job.asked, work)
        known = [flow_plan.flow for flow_plan in job.asked.flows]
        return job.asked, [], None, frozenset(tensors_read(work, known))
    decision = decide(
        work, found, widths=job.asked, activations=job.activations,
        activation_bits=job.activation_bits, grid=job.grid, group_size=job.group_size,
        symmetric=job.symmetric, exclude=job.exclude, include=job.include, strict=job.strict,
        batches=job.batches, training=training, normed=normed, progress=job.progress,
    )  # fmt: skip
    job.notes.add_all(decision.notes)
    flows = [FlowPlan(flow, flow.steps) for flow in found.flows]
    replan = decision.replan if job.rows_allowed else None
    return decision.plan, flows, replan, found.read_elsewhere


def _moved(
    job: _Job,
    work: nn.Module,
    decided: Plan,
    flows: list[FlowPlan],
    read_elsewhere: frozenset[str],
) -> frozenset[str]:
    """Equalizes channel ranges and smooths outliers; the layers whose channels were divided."""
    if job.batches is None or job.effort == "fast":
        return frozenset()
    divided = equalize(work, decided, job.batches, read_elsewhere).divided
    if divided:
        job.notes.add(f"channel ranges equalized behind {len(divided)} layers")
    captured = [f.flow for f in flows or decided.flows]
    smoothed = smooth(work, decided, captured, job.batches, read_elsewhere)
    if smoothed.pairs:
        job.notes.add(
            f"activation outliers of {len(smoothed.pairs)} normalisations moved into the linear "
            "layers behind them"
        )
    return divided


def _calibrated(
    job: _Job, work: nn.Module, decided: Plan, replan: _Replan | None = None
) -> tuple[Plan, Mapping[RangeKey, QParams]]:
    """Static ranges, and the plan without them for what no batch reached and for uneven rows."""
    if job.batches is None or all(site.activations != "static" for site in decided.sites):
        return decided, {}
    calibration = calibrate(work, decided, job.batches, job.ranges, job.progress)
    regions = [region for flow in decided.flows for region in flow.regions]
    joined = [r for r in regions if not all(PLANNED[step.kind].gives_float for step in r.steps)]
    inside = {name for region in joined for name in region.layers}
    uneven = {
        name: gain
        for name, gain in calibration.by_rows.items()
        if gain >= (_UNEVEN_INSIDE if name in inside else _UNEVEN)
        and sums_are_finite(canonical_weight(work.get_submodule(name)))
    }
    if replan is not None and uneven:
        decided = replan(
            {n: f"one range has {gain:.3g} times the error" for n, gain in uneven.items()}
        )
        job.notes.add(
            f"ranges of each row for the inputs of {len(uneven)} layers: one range for all fits "
            "them badly"
        )
    decided = without_unreached(decided, calibration, by_rows=replan is not None and bool(uneven))
    job.notes.add_all(calibration.notes)
    kept = {*plan_keys(decided), *(SiteKey(s.name) for s in decided.sites if s.region)}
    return decided, {key: p for key, p in calibration.qparams.items() if key in kept}


def _method(job: _Job, work: nn.Module, decided: Plan, divided: frozenset[str]) -> Method:
    """The rounding method asked for, else the one that fits."""
    if job.rounding is not None:
        return METHODS[job.rounding]
    # With data it is known whether channels were far enough apart to matter.
    depthwise = bool(divided) if job.batches is not None else _any_depthwise(work, decided)
    widths = [site.scheme.bits for site in decided.sites if site.scheme]
    name, why = choose(widths, job.batches is not None, job.effort, depthwise)
    if name != "nearest":
        job.notes.add(f"rounding {name!r} chosen for {why}")
    return METHODS[name]


def _corrected(
    job: _Job, work: nn.Module, decided: Plan, rounded: Rounded, how: Method
) -> tuple[Mapping[str, Codes], Mapping[str, float]]:
    """Codes with corrected biases, and each layer's error on the data."""
    if job.batches is None or job.effort == "fast" or not rounded.codes:
        return rounded.codes, {}
    correction = correct_bias(
        work, decided, rounded.qparams, rounded.codes, job.batches,
        fitted=how.needs_data,  # Those methods have fitted the biases.
    )  # fmt: skip
    return correction.codes, correction.output_sqnr


class _Notes:
    """Messages for the user: printed once on stderr, kept for the report."""

    def __init__(self, aloud: bool) -> None:
        self._aloud = aloud
        self.said: tuple[str, ...] = ()

    def add(self, text: str) -> None:
        if text not in self.said:
            self.said += (text,)
            if self._aloud:
                print(f"octavo: {text}", file=sys.stderr)

    def add_all(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.add(text)


def _any_depthwise(model: nn.Module, decided: Plan) -> bool:
    return any(is_depthwise(model.get_submodule(s.name)) for s in decided.sites if s.scheme)


def _zero_channels(codes: Mapping[str, Codes]) -> Iterator[str]:
    zero: list[str] = []
    for name, code in codes.items():
        empty = int((~code.codes.flatten(1).any(1)).sum()) if code.codes.numel() else 0
        if empty:
            zero.append(f"{name!r} ({empty} of {code.codes.shape[0]})")
    if zero:
        more = ", ..." if len(zero) > 5 else ""
        yield f"output channels whose weights are all zero: {', '.join(zero[:5])}{more}"
