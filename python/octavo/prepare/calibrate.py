"""Plan and batches to the range of every value that stays in integers."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from octavo import ops
from octavo.data import Batches, Call
from octavo.errors import CalibrationError
from octavo.graph.flow import Flow, Ref, Step, refs, run
from octavo.graph.keys import RangeKey, SiteKey, ValueKey, wide
from octavo.graph.operators import OPERATOR
from octavo.graph.replay import replayed
from octavo.interrupts import check
from octavo.nn.kept_state import state_kept
from octavo.nn.linear import QLinear
from octavo.nn.registry import quantized_class
from octavo.numerics.ranges import RULES, Histogram, clipped, squared_error
from octavo.numerics.scheme import QParams
from octavo.ops.region_steps import PLANNED, PRODUCTS
from octavo.planning.plan import FlowPlan, Plan, RegionPlan, SitePlan

__all__ = ["Calibration", "calibrate", "plan_keys", "region_keys", "without_unreached"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Ranges found in data.

    Attributes:
        qparams: values inside regions, and the inputs of static layers that run alone, to their
            parameters; for layers of regions too, of the calls that their own forwards took.
        clipped: share of the values (0..1) that lie beyond the codes, by the same keys.
        unreached: keys that no batch reached; they have no parameters.
        constant: keys whose values were all equal.
        by_rows: layers that could have a range of each row instead at no cost for integers
            elsewhere, to how many times their input's squared error falls with it.
        samples, batches: how much data was read (samples 0 where a callable ran the model).
        notes: what was done with the data, in words.
    """

    qparams: dict[RangeKey, QParams]
    clipped: dict[RangeKey, float]
    unreached: tuple[RangeKey, ...] = ()
    constant: tuple[RangeKey, ...] = ()
    by_rows: dict[str, float] = dataclasses.field(default_factory=dict)
    samples: int = 0
    batches: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = max(self.clipped.values(), default=0.0)
        worst = next((str(key) for key, found in self.clipped.items() if found == share), "")
        lines = [
            f"{self.samples} samples in {self.batches} batches, {len(self.qparams)} ranges, "
            f"at most {100 * share:.3f} % of a value clipped" + (f" ({worst})" if share else "")
        ]
        for key, p in self.qparams.items():
            low, high = -p.zero_point * p.scale, (p.qmax - p.zero_point) * p.scale
            lines.append(
                f"  {key}: {low:.5g} .. {high:.5g}, zero_point {p.zero_point}, "
                f"{100 * self.clipped[key]:.3f} % clipped"
            )
        lines += [f"  {key}: never reached by data" for key in self.unreached]
        return "\n".join([*lines, *self.notes])


def calibrate(
    model: nn.Module, plan: Plan, data: object, ranges: str = "typical", progress: bool = True
) -> Calibration:
    """The ranges of all values that ``plan`` stores in integers, from one pass over the data.

    Captured modules are evaluated in float, step by step, each value going into a streaming
    histogram; inputs of static layers elsewhere are seen by hooks that are gone when this returns.
    Results do not depend on how the data is split into batches: what is kept are histograms of all
    values, of the extremes of each sample (an entry of the first dimension, or several of them
    where there are more than samples in the batch) and of the spans of rows. No more than one
    batch's activations are held.

    Args:
        model: the float model that the plan was made for, folded. It comes back as it was.
        plan: which values are needed.
        data: batches (see `octavo.data.Batches`).
        ranges: row of `octavo.numerics.ranges.RULES`.
        progress: count the batches on a terminal.

    Raises:
        ValueError: a value is NaN or infinite; layer, batch and count are named.
        TypeError: a batch does not fit the model's forward.
        CalibrationError: there is no batch, or no layer that needs a range was reached.
        Exception: whatever the model itself raises.
    """
    batches = data if isinstance(data, Batches) else Batches(data)
    collector = _Collector(plan, _row_readers(model, plan))
    collector.progress = _progress_line(progress)
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            collector.hook(SiteKey(name)), with_kwargs=True
        )
        for name in (*collector.sites, *collector.covered)
    ]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with (
            state_kept(model),
            replayed(
                model,
                collector.watched_flows,
                lambda flow, tensors: collector.run(flow, model, tensors),
            ),
        ):
            batches.run(model, collector.before)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
        collector.progress("")
    return collector.result(ranges)


def without_unreached(plan: Plan, calibration: Calibration, by_rows: bool = False) -> Plan:
    """The plan in which layers that no batch reached run alone with dynamic activations.

    Args:
        plan: that the ranges were found for.
        calibration: the ranges.
        by_rows: whether layers that were reached have ranges of each row by now.

    Raises:
        CalibrationError: no layer was reached.
    """
    unreached = set(calibration.unreached)
    if not unreached:
        return plan
    flows = tuple(
        flow
        for flow in plan.flows
        if not any(unreached & set(region_keys(flow.flow, region)) for region in flow.regions)
    )
    kept = {region.name for flow in flows for region in flow.regions}

    def was_reached(site: SitePlan) -> bool:
        return site.region in kept if site.region else SiteKey(site.name) not in unreached

    def degraded(site: SitePlan) -> SitePlan:
        reason = "never reached by data"
        if site.scheme and site.activations == "static" and not was_reached(site):
            return dataclasses.replace(site, activations="dynamic", region="", reason=reason)
        if site.region and site.region not in kept:  # A lone BatchNorm, for instance.
            return dataclasses.replace(site, region="", reason=reason)
        return site

    sites = tuple(map(degraded, plan.sites))
    static = [site for site in plan.sites if site.scheme and site.activations == "static"]
    if (
        static
        and not by_rows
        and not any(site.scheme and site.activations == "static" for site in sites)
    ):
        names = ", ".join(repr(site.name) for site in static[:5])
        raise CalibrationError(
            f"quantize: data must reach at least one layer, got none of {len(static)} ({names}) in "
            f"{calibration.batches} batches. Calibrate with data that runs through them."
        )
    return dataclasses.replace(plan, sites=sites, flows=flows)


def region_keys(flow: Flow, region: RegionPlan) -> list[RangeKey]:
    """Keys of the values of a region that own their parameters."""
    return [ValueKey(flow.path, value) for value in dict.fromkeys(region.params_of.values())]


def plan_keys(plan: Plan) -> list[RangeKey]:
    """Keys of all that a plan stores in integers."""
    alone = [s.name for s in plan.sites if s.scheme and s.activations == "static" and not s.region]
    keys: list[RangeKey] = [SiteKey(name) for name in alone]
    for flow in plan.flows:
        for region in flow.regions:
            keys += region_keys(flow.flow, region)
    return keys


def _observed(key: RangeKey) -> RangeKey:
    """The key of the value that is seen."""
    return key if isinstance(key, SiteKey) else ValueKey(key.path, wide(key.value))


def _is_added(flow: FlowPlan, region: RegionPlan) -> bool:
    """Whether sums of floats, and nothing else, read what the region gives."""
    readers = [
        step
        for step in (item for item in flow.items if isinstance(item, Step))
        if set(region.outputs) & {*step.inputs, *refs([step.args, dict(step.kwargs)])}
    ]
    sums = (step.kind in PLANNED and PLANNED[step.kind].is_sum for step in readers)
    return bool(readers) and all(sums)


def _row_readers(model: nn.Module, plan: Plan) -> dict[str, RangeKey]:
    """Linear layers that could leave the integers at little cost, to their inputs.

    They go from floats to floats, alone or with a table between them to a residual sum of floats.
    """
    inputs: dict[str, RangeKey] = {
        site.name: SiteKey(site.name)
        for site in plan.sites
        if site.scheme and site.activations == "static" and not site.region
    }
    for flow in plan.flows:
        for region in flow.regions:
            kinds = [PLANNED[step.kind] for step in region.steps]
            of_rows = all("rows" in k.reads if k.is_product else k.is_pointwise for k in kinds)
            if of_rows and (all(k.gives_float for k in kinds) or _is_added(flow, region)):
                for step in region.steps:
                    if step.kind in PRODUCTS:
                        inputs[step.module] = ValueKey(flow.flow.path, step.inputs[0])
    # Where a layer is called twice, each call has a range of its own.
    calls = Counter(step.module for flow in plan.flows for step in flow.steps)
    return {
        name: _observed(key)
        for name, key in inputs.items()
        if calls[name] <= 1 and quantized_class(model.get_submodule(name))[0] is QLinear
    }


def _read_as_operators(flow: Flow) -> Iterator[tuple[str, list[str]]]:
    """Values to the layers whose calls on them are operators in the flow: those on constants."""
    parts = [part for step in flow.steps for part in step.fused or (step,)]
    tensors = {part.output: part.args[0] for part in parts if part.function == "get_attr"}
    found: dict[str, list[str]] = {}
    for part in parts:
        given = [arg.name if isinstance(arg, Ref) else "" for arg in part.args[:2]]
        owner, _, name = (
            tensors.get(given[-1], "").rpartition(".") if len(given) == 2 else ("",) * 3
        )
        if part.function.startswith(OPERATOR) and name == "weight" and given[0]:
            found.setdefault(given[0], []).append(owner)
    yield from found.items()


class _Collector:
    """Histograms of each value, and where the data stands."""

    def __init__(self, plan: Plan, row_readers: Mapping[str, RangeKey]) -> None:
        alone = [
            site
            for site in plan.sites
            if site.scheme and site.activations == "static" and not site.region
        ]
        self.sites = [site.name for site in alone]
        # In regions, but where a call does not fit the flow, their own forwards run.
        self.covered = {
            site.name: site.activation_bits
            for site in plan.sites
            if site.scheme and site.activations == "static" and site.region
        }
        self.inside = 0  # flows that run
        self.watched_flows = [plan_of.flow for plan_of in plan.flows]
        # Bits of each key. A value that is stored in two widths has one histogram.
        self.bits: dict[RangeKey, int] = {
            SiteKey(site.name): site.activation_bits for site in alone
        }
        for plan_of in plan.flows:
            for region in plan_of.regions:
                for value in region.params_of.values():
                    self.bits[ValueKey(plan_of.flow.path, value)] = region.bits.get(value, 8)
        keys = (*self.bits, *map(SiteKey, self.covered))
        self.histograms = {
            _observed(key): Histogram(samples=(Histogram(), Histogram())) for key in keys
        }
        self.row_readers = row_readers
        # Of each row, zero included; the whole span of finite floats may be infinite.
        self.half_spans = {key: Histogram() for key in row_readers.values()}
        self.batch, self.batches, self.samples, self.batch_samples = 0, 0, 0, 0
        self.dropped: tuple[str, ...] = ()
        self.progress: Callable[[str], None] = lambda _text: None

    def before(self, number: int, call: Call | None) -> None:
        """Called ahead of each batch."""
        self.batch, self.batches = number, number + 1
        self.progress(f"octavo: calibrating, batch {number + 1}")
        if call is not None:
            self.batch_samples = call.samples
            self.samples += call.samples
            self.dropped = call.dropped or self.dropped
            for tensor in call.tensors:
                self.finite("the input of the model", tensor, ops.minmax(tensor)[1])

    def finite(self, where: str, x: Tensor, bad: Tensor) -> None:
        """A ValueError if any element is not finite."""
        count = int(bad.sum())
        if count:
            raise ValueError(
                f"calibrate: {where} must be finite, "
                f"got {count} NaN or infinite values of {x.numel()} in batch {self.batch}. "
                "Repair or leave out this batch; if it is sound, look for an overflow in the model."
            )

    def see(self, key: RangeKey, where: str, x: Tensor) -> None:
        """Add a tensor to the histograms of a key."""
        if x.numel() == 0:
            return
        by_rows = key in self.half_spans
        parts = x.reshape(-1, x.shape[-1]) if by_rows else x.reshape(1) if x.dim() == 0 else x
        extremes, bad = ops.minmax_per_channel(parts, 0)
        self.finite(where, x, bad)
        if by_rows:
            _add(self.half_spans[key], extremes[1].clamp(min=0) / 2 - extremes[0].clamp(max=0) / 2)
        first = x.shape[0] if x.dim() else 1
        samples = (
            self.batch_samples if self.batch_samples and first % self.batch_samples == 0 else first
        )
        lows, highs = extremes[0].view(samples, -1).amin(1), extremes[1].view(samples, -1).amax(1)
        histogram = self.histograms[key]
        _add(histogram, x, float(lows.min()), float(highs.max()))
        assert histogram.samples is not None
        for found, ends in zip(histogram.samples, (lows, highs), strict=True):
            _add(found, ends)

    def run(self, flow: Flow, model: nn.Module, tensors: tuple[Tensor, ...]) -> Any:
        """A flow in float, whose values are seen."""
        self.inside += 1
        try:
            return run(flow, model, *tensors, observe=self.observer(flow))
        finally:
            self.inside -= 1

    def observer(self, flow: Flow) -> Callable[[str, Tensor], None]:
        """What `octavo.graph.flow.run` calls with every value."""
        makers = {part.output: part.module for step in flow.steps for part in step.fused or (step,)}
        constants = dict(_read_as_operators(flow))

        def observe(value: str, x: Tensor) -> None:
            for layer in constants.get(value, ()):
                if layer in self.covered:
                    self.see(SiteKey(layer), f"an input of layer {layer!r}", x)
            key = ValueKey(flow.path, value)
            if key in self.histograms:
                maker = makers.get(value)
                where = f"the output of layer {maker!r}" if maker else f"value {value!r}"
                self.see(key, where, x)

        return observe

    def hook(self, key: SiteKey) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A forward pre-hook that sees the layer's input."""

        def see_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            # Where a hook of the user's may change the input, its own forward runs in regions too.
            is_alone = len(module._forward_pre_hooks) == 1
            in_region = self.inside and key.layer in self.covered and is_alone
            if isinstance(x, Tensor) and not in_region:
                self.see(key, f"the input of layer {key.layer!r}", x)

        return see_input

    def result(self, ranges: str) -> Calibration:
        """Parameters of everything that was seen."""
        rule = RULES[ranges]
        qparams, shares, unreached, constant = {}, {}, [], []
        wanted = dict(self.bits)
        for name, bits in self.covered.items():
            if self.histograms[SiteKey(name)].count:
                wanted[SiteKey(name)] = bits
        for key, bits in wanted.items():
            check()
            histogram = self.histograms[_observed(key)]
            if histogram.count == 0:
                unreached.append(key)
                continue
            qparams[key] = rule(histogram, bits)
            shares[key] = clipped(histogram, qparams[key]) / histogram.count
            if histogram.low == histogram.high:
                constant.append(key)
        by_rows = {
            name: _gain_of_rows(self.histograms[key], qparams[key], self.half_spans[key])
            for name, key in self.row_readers.items()
            if key in qparams and qparams[key].bits == 8
        }
        if constant:
            warnings.warn(
                f"calibrate: {len(constant)} values never changed in the data (first "
                f"{str(constant[0])!r}): their "
                "ranges fit nothing else. Use real data.",
                stacklevel=8,
            )
        notes = []
        if self.dropped:
            notes.append(
                f"data: {', '.join(self.dropped)} of each batch left out, "
                "since forward cannot take them"
            )
        return Calibration(
            qparams,
            shares,
            tuple(unreached),
            tuple(constant),
            by_rows,
            self.samples,
            self.batches,
            tuple(notes),
        )


def _add(
    histogram: Histogram, x: Tensor, low: float | None = None, high: float | None = None
) -> None:
    """Add the values of a tensor, whose extremes may be known."""
    histogram.update(
        float(x.min()) if low is None else low,
        float(x.max()) if high is None else high,
        x.numel(),
        lambda exponent, first, bins: ops.histogram(x, exponent, first, bins),
    )


def _gain_of_rows(histogram: Histogram, qparams: QParams, half_spans: Histogram) -> float:
    """How many times the mean squared error falls where each row has a range of its own."""
    sizes, counts = half_spans.filled()
    steps = 2 * sizes / qparams.qmax
    with_rows = float((steps.square() * counts).sum()) / half_spans.count / 12
    return squared_error(histogram, qparams) / with_rows if with_rows else 1.0


def _progress_line(wanted: bool) -> Callable[[str], None]:
    """Writes a text over the last one on a terminal; "" ends it."""
    if not wanted or not sys.stderr.isatty():
        return lambda _text: None

    def write(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    return write
