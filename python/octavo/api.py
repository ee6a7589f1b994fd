"""The public calls. `quantize` is the pipeline, stage after stage, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from torch import nn

from octavo import checks
from octavo.batches import Batches
from octavo.calibrate import calibrate, without_unreached
from octavo.capture import capture
from octavo.codes import Codes
from octavo.decide import decide
from octavo.equalize import equalize
from octavo.errors import describe
from octavo.fold import fold
from octavo.measure import tensor_bytes
from octavo.model_checks import check_model
from octavo.nn.layer import QLayer
from octavo.nn.registry import is_depthwise
from octavo.nn.surgery import copy_model
from octavo.plan import FlowPlan, Plan
from octavo.record import Record, attach, layer_records
from octavo.rewrite import dequantize as _dequantize
from octavo.rewrite import rewrite
from octavo.rounding import METHODS, choose, correct_bias, round_model
from octavo.scheme import QParams
from octavo.search import Search
from octavo.signature import known_arguments
from octavo.smooth import smooth
from octavo.trainee import make_trainee
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
            names, globs, classes, "@first", "@last" to either, later entries winning; a float, the
            average to be spent where it helps most; a `Plan`, or the Path of its JSON file.
        data: batches to calibrate with: a tensor, an iterable of tensors, tuples or mappings, or a
            callable that is given the model and runs it. With data activations are static and
            stretches of the network run in integers from end to end; without, each row (each image)
            is quantized as it comes.
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
            data).
            Default: by bits, data and effort, said in the report.
        ranges: "huber" (default: squared error that giant values count in linearly), "mse",
            "minmax" or "percentile".
        effort: "fast" rounds plainly and takes ranges as they are. "balanced" searches codes of few
            bits (of all widths in networks with depthwise convolutions), and with data corrects
            biases, equalizes channel ranges in networks with depthwise convolutions and moves
            activation outliers behind normalisations into weights.
            "best" learns the rounding of few bits block by block, and scales and biases for the
            outputs of the float model, which takes longer.
        exclude: names, globs or classes of layers to leave out.
        include: names, globs or classes of the only layers to quantize. Default: all.
        inplace: change and return ``model`` itself. If anything fails it is as it was.
        strict: whether a pattern that matches nothing, or nothing to quantize, is an error.
        progress: tell on stderr what is going on.
        evaluate: with max_drop, a function from a model to its score; higher is better.
        max_drop: how much of the float model's score may be lost. The smallest average of widths
            that keeps to it is searched, up to ``bits``; if there is none, the best model found is
            returned, and the report says so.
        qat: return a trainee instead: a copy with the very Parameters of ``model`` and
            fake-quantizers exactly where the integer model stores values, for your own training
            loop and then `octavo.freeze`. Static ranges start from data; without data, activations
            are dynamic, or "float".
        qat_method: with qat, how ranges come about: "ste" (moving averages; adds no Parameters),
            "lsq", "lsq+", "pact" (trained steps, zero points, clips: `octavo.range_parameters`) or
            "dorefa". Default: "ste" for values and weights of 8 to 5 bits, "lsq" below.

    Raises:
        TypeError: an argument of the wrong kind, a batch that ``forward`` cannot take.
        ValueError: an argument out of range, a weight or an activation that is not finite, a model
          that is quantized.
        NothingQuantizedError: no layer was left to quantize.
        CalibrationError: no batches, or no layer was reached by them.
    """
    checks.check_choices(
        grid=grid, group_size=group_size, symmetric=symmetric, rounding=rounding, ranges=ranges,
        effort=effort, evaluate=evaluate, max_drop=max_drop, qat=qat, qat_method=qat_method,
        has_data=data is not None,
    )  # fmt: skip
    asked, how_stored, activation_bits = checks.check_widths(bits, activations, data is not None)
    excluded = checks.check_patterns("exclude", exclude)
    included = checks.check_patterns("include", include)
    check_model(model, inplace)
    batches = None if data is None else Batches(data)
    notes = _Notes(progress)
    if qat:
        checks.check_training(rounding)
    elif model.training:
        notes.add("the model was in training mode; the quantized one is in evaluation mode")
    if evaluate is not None and max_drop is not None:
        options: dict[str, Any] = {
            "grid": grid, "activations": activations, "group_size": group_size,
            "symmetric": symmetric, "rounding": rounding, "ranges": ranges, "effort": effort,
            "exclude": excluded, "include": included, "strict": strict, "progress": progress,
        }  # fmt: skip
        widest = checks.check_search(bits, qat)
        search = Search(model, data, evaluate, functools.partial(quantize, **options))
        narrowest = search.result(widest, float(max_drop), grid, inplace, progress)
        return cast(Model, narrowest)
    with _unharmed(model) if inplace else contextlib.nullcontext():
        float_bytes = tensor_bytes(model)
        work = (model if inplace and not qat else copy_model(model)).eval()
        example = None if batches is None else batches.example(work)
        folded = fold(work, example, training=qat)
        if not qat:
            notes.add_all(f"{name} is computed once and kept" for name in folded.materialised)
        if isinstance(asked, Plan):
            decided, flows = asked, []
            checks.check_plan(decided, work)
        else:
            found = capture(work, example, training=qat)
            decision = decide(
                work, found, widths=asked, activations=how_stored, activation_bits=activation_bits,
                grid=grid, group_size=group_size, symmetric=symmetric, exclude=excluded,
                include=included, strict=strict, batches=batches, training=qat, progress=progress,
                normed=frozenset(layer for _, layer in folded.batch_norms) if qat else frozenset(),
            )  # fmt: skip
            notes.add_all(decision.notes)
            decided = decision.plan
            # Modules to round block by block where no region runs them.
            flows = [FlowPlan(flow, flow.steps) for flow in found.flows]
        divided: frozenset[str] = frozenset()
        if batches is not None and effort != "fast" and not qat:
            divided = equalize(work, decided, batches).divided
            if divided:
                notes.add(f"channel ranges equalized behind {len(divided)} layers")
            smoothed = smooth(work, decided, [f.flow for f in flows or decided.flows], batches)
            if smoothed.pairs:
                notes.add(
                    f"activation outliers of {len(smoothed.pairs)} normalisations moved into the "
                    "linear layers behind them"
                )
        params: Mapping[str, QParams] = {}
        if batches is not None and any(s.activations == "static" for s in decided.sites):
            calibration = calibrate(work, decided, batches, ranges or "huber", progress)
            decided = without_unreached(decided, calibration)
            params = calibration.qparams
            notes.add_all(calibration.notes)
        if qat:
            rounding = "nearest"  # For the report: training decides.
        # With data it is known whether channels were far enough apart to matter.
        sensitive = bool(divided) if batches is not None else _any_depthwise(work, decided)
        how = METHODS[rounding or _chosen_rounding(decided, batches, effort, sensitive, notes)]
        rounded = round_model(
            work, decided, how, qparams=params, data=batches, flows=flows, progress=progress
        )
        codes, params = rounded.codes, rounded.qparams
        notes.add_all([*rounded.notes, *_zero_channels(codes)])
        measured: dict[str, float] = {}
        if batches is not None and effort != "fast" and codes and not qat:
            correction = correct_bias(work, decided, params, codes, batches)
            measured = correction.output_sqnr
            if not how.needs_data:  # The others have fitted the biases.
                codes = correction.codes
        layers = layer_records(work, decided, codes, measured, divided)
        if qat:
            result = make_trainee(
                model, decided, params, batch_norms=folded.batch_norms,
                float_bytes=float_bytes, method=qat_method, inplace=inplace,
            )  # fmt: skip
        else:
            result = rewrite(work, decided, params, codes, inplace=True)
        attach(result, Record(layers, float_bytes, notes.said))
    return cast(Model, result)


@known_arguments
def dequantize(model: Model, inplace: bool = False) -> Model:
    """A float model again, whose weights are what the integers stand for.

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
            f"dequantize: model must hold quantized layers, got a {type(model).__name__} without "
            "any. "
            "Pass the result of octavo.quantize."
        )
    return cast(Model, _dequantize(model, inplace))


class _Notes:
    """What is worth saying: said once on stderr, kept for the report."""

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


def _chosen_rounding(
    decided: Plan, batches: Batches | None, effort: str, depthwise: bool, notes: _Notes
) -> str:
    widths = [site.scheme.bits for site in decided.sites if site.scheme]
    name, why = choose(widths, batches is not None, effort, depthwise)
    if name != "nearest":
        notes.add(f"rounding {name!r} chosen for {why}")
    return name


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


@contextlib.contextmanager
def _unharmed(model: nn.Module) -> Iterator[None]:
    """Puts every module back as it was if anything goes wrong.

    Stages replace tensors, they never write into them.
    """
    saved = []
    for module in model.modules():
        state = dict(module.__dict__)
        tables = [(table, dict(table)) for table in state.values() if isinstance(table, dict)]
        saved.append((module, type(module), state, tables))
    try:
        yield
    except BaseException:
        for module, cls, state, tables in saved:
            if type(module) is not cls:
                module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(state)
            for table, content in tables:
                table.clear()
                table.update(content)
        raise
