"""Whether a frozen model computes what its trainee was trained to compute, site by site."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo import ops
from octavo.data import Batches
from octavo.errors import describe
from octavo.graph.flow import Step, evaluate, substitute
from octavo.graph.keys import Entry, wide
from octavo.graph.replay import flow_arguments
from octavo.interrupts import held_back, let_through
from octavo.nn.forwards import replaced_forwards
from octavo.nn.layer import QLayer
from octavo.nn.trained_layer import trained_layer
from octavo.numerics.scheme import QParams
from octavo.ops.region_program import Program, parse
from octavo.ops.region_steps import PLANNED
from octavo.planning.plan import Plan
from octavo.runtime.captured_forward import CapturedForward, Region, captured_forward
from octavo.runtime.trained_forward import TrainedForward, trained_forward
from octavo.signature import known_arguments
from octavo.training.freeze import check_trainee
from octavo.types import Data, Evaluate

__all__ = ["SiteCheck", "Verification", "verify"]

_FLOAT_TOLERANCE = 1e-4
"""Of the largest magnitude: float results differ by the order of float32 sums."""


@dataclass(frozen=True)
class SiteCheck:
    """One value that the integer model stores, or one layer's float result.

    Attributes:
        site: "<region>:<value>", or the name of a layer that runs alone.
        kind: kind of the step.
        steps: largest difference of codes where the frozen model is fed the trainee's own codes;
            None for float results.
        equal: share of equal codes there.
        end_to_end: share of equal codes where each model runs on its own from the input.
        error: of float results, the largest difference in units of the largest magnitude.
    """

    site: str
    kind: str
    steps: int | None
    equal: float
    end_to_end: float
    error: float = 0.0

    @property
    def holds(self) -> bool:
        """At most one step, or for floats no more than the order of sums explains."""
        return self.error <= _FLOAT_TOLERANCE if self.steps is None else self.steps <= 1


@dataclass(frozen=True)
class Verification:
    """What `verify` found; `str` gives the table.

    Attributes:
        evaluations: what ``evaluate`` gave for the trainee and the frozen model.
    """

    sites: tuple[SiteCheck, ...]
    samples: int
    evaluations: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether every site keeps the promise of one step."""
        return all(site.holds for site in self.sites)

    def __str__(self) -> str:
        width = max([len(site.site) for site in self.sites] + [4])
        kinds = max([len(site.kind) for site in self.sites] + [4])
        lines = [f"{'site':{width}}  {'kind':{kinds}}  steps  equal codes  end to end"]
        for site in self.sites:
            if site.steps is None:
                lines.append(
                    f"{site.site:{width}}  {site.kind:{kinds}}  float  error {site.error:.1e}"
                )
            else:
                lines.append(
                    f"{site.site:{width}}  {site.kind:{kinds}}  {site.steps:5}  "
                    f"{100 * site.equal:9.4f} %  {100 * site.end_to_end:8.2f} %"
                    + ("" if site.holds else "  <- more than one step")
                )
        lines.append(f"{self.samples} samples, promise of one step {_kept(self.holds)}")
        if self.evaluations is not None:
            trained, frozen = self.evaluations
            lines.append(f"evaluation: trainee {trained:.4g}, frozen {frozen:.4g}")
        return "\n".join(lines)


def _kept(holds: bool) -> str:
    return "kept" if holds else "BROKEN"


@held_back()
@known_arguments
def verify(
    trainee: nn.Module,
    frozen: nn.Module,
    data: Data,
    evaluate: Evaluate | None = None,
) -> Verification:
    """Compares a trainee, run by the training operators, with its frozen model, run by regions.

    Each site of the frozen model gets the trainee's own codes; there codes may differ by at most
    one step. End to end both run from the input, and the table tells the share of equal codes at
    each site. Float32 and evaluation mode; under autocast a trainee sees values rounded to
    bfloat16.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(),
        ...     torch.nn.Linear(64, 8))
        >>> trainee = octavo.quantize(model, 4, data=torch.randn(32, 64), qat=True)
        >>> octavo.verify(trainee, octavo.freeze(trainee), torch.randn(8, 64)).holds
        True

    Args:
        trainee: what was trained. It comes back as it was.
        frozen: what `octavo.freeze` made of it.
        data: batches, as for `octavo.quantize`.
        evaluate: given each of the two models, returns its accuracy or another figure.
    """
    training = check_trainee(trainee, "verify")
    if not isinstance(frozen, nn.Module) or not any(
        isinstance(module, QLayer) for module in frozen.modules()
    ):
        raise TypeError(
            f"verify: frozen must be a quantized nn.Module, got {describe(type(frozen).__name__)}. "
            "Pass the result of octavo.freeze(trainee)."
        )
    comparison = _Comparison(trainee, frozen, training.plan)
    batches = Batches(data)
    modes = {module: module.training for module in [*trainee.modules(), *frozen.modules()]}
    samples = 0
    try:
        trainee.eval()
        frozen.eval()
        with torch.no_grad():
            for call in batches.calls(trainee):
                samples += call.samples
                with comparison.watched():
                    let_through(trainee, *call.args, **call.kwargs)
                    let_through(frozen, *call.args, **call.kwargs)
            figures = None
            if evaluate is not None:
                figures = let_through(evaluate, trainee), let_through(evaluate, frozen)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Verification(comparison.result(), samples, figures)


@dataclass
class _Tally:
    """Differences at one site."""

    kind: str
    steps: int = 0
    count: int = 0
    different: int = 0
    count_apart: int = 0
    different_apart: int = 0
    error: float | None = None

    def add(self, wanted: Tensor, got: Tensor) -> None:
        """Codes where both were fed the same."""
        difference = (wanted.to(torch.int16) - got.to(torch.int16)).abs()
        self.count += difference.numel()
        self.different += int(difference.count_nonzero())
        self.steps = max(self.steps, int(difference.max()) if difference.numel() else 0)

    def add_apart(self, wanted: Tensor, got: Tensor) -> None:
        """Codes where each ran on its own."""
        self.count_apart += wanted.numel()
        self.different_apart += int((wanted != got).count_nonzero())

    def add_floats(self, wanted: Tensor, got: Tensor) -> None:
        """Float results where both were fed the same."""
        largest = float(wanted.abs().max()) if wanted.numel() else 0.0
        error = float((wanted - got).abs().max()) if wanted.numel() else 0.0
        self.error = max(self.error or 0.0, error / max(largest, 1e-30))

    def check(self, site: str) -> SiteCheck:
        """The row."""
        equal = 1 - self.different / max(self.count, 1)  # No values at all: an empty batch.
        apart = 1 - self.different_apart / max(self.count_apart, 1)
        steps = self.steps if self.error is None else None
        return SiteCheck(site, self.kind, steps, equal, apart, self.error or 0.0)


class _Comparison:
    def __init__(self, trainee: nn.Module, frozen: nn.Module, plan: Plan) -> None:
        self.trainee, self.frozen = trainee, frozen
        self.alone = frozenset(site.name for site in plan.sites if site.scheme and not site.region)
        self.tallies: dict[str, _Tally] = {}
        self.pending: dict[str, list[dict[str, Tensor]]] = {}
        self.regions: dict[str, list[Region]] = {}
        for path, module in frozen.named_modules():
            forward = captured_forward(module)
            items = () if forward is None else forward.items
            self.regions[path] = [item for item in items if isinstance(item, Region)]

    def result(self) -> tuple[SiteCheck, ...]:
        """All rows, in the order in which the sites were first reached."""
        return tuple(tally.check(site) for site, tally in self.tallies.items())

    def tally(self, site: str, kind: str) -> _Tally:
        """The differences at a site."""
        return self.tallies.setdefault(site, _Tally(kind))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While it lasts, calls of captured modules and of layers that run alone are compared."""
        self.pending.clear()
        with contextlib.ExitStack() as stack:
            replace = stack.enter_context(replaced_forwards())
            for path, module in self.trainee.named_modules():
                trained = trained_forward(module)
                if trained is not None:
                    replace(module, self._watch_trainee(path, trained))
                if trained_layer(module) is not None and path in self.alone:
                    twin = self.frozen.get_submodule(path)
                    handle = module.register_forward_hook(self._watch_layer(path, twin))
                    stack.callback(handle.remove)
            for path, module in self.frozen.named_modules():
                forward = captured_forward(module)
                if forward is not None:
                    replace(module, self._watch_frozen(path, forward))
            yield

    def _watch_layer(self, path: str, twin: nn.Module) -> Callable[..., None]:
        def compare(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.tally(path, type(twin).__name__).add_floats(output, twin(args[0]))

        return compare

    def _watch_trainee(self, path: str, forward: TrainedForward) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = forward.values(*args, **kwargs)
            if found is None:
                return forward(*args, **kwargs)
            result, values = found
            self.pending.setdefault(path, []).append(values)
            for region in self.regions.get(path, ()):
                self._feed(path, region, values)
            return result

        return run

    def _codes(self, path: str, region: Region, value: str, values: dict[str, Tensor]) -> Tensor:
        """The trainee's codes of a value."""
        p = self._params(path, region, value)
        x = values.get(str(Entry(value, region.name)))
        x = values[value] if x is None else x
        return ops.quantize(x, p.scale, p.zero_point, p.qmax)

    def _params(self, path: str, region: Region, value: str) -> QParams:
        scale, zero, largest = parse(region.program).parameters(region.values[value])
        return QParams(float.fromhex(scale), int(zero), int(largest).bit_length())

    def _feed(self, path: str, region: Region, values: dict[str, Tensor]) -> None:
        """Every step of the region on the trainee's codes."""
        program = parse(region.program)
        for step in region.steps:
            known = tuple(dict.fromkeys(n for n in step.inputs if n in region.values))
            reals = []
            for name in known:
                p = self._params(path, region, name)
                codes = self._codes(path, region, name, values)
                reals.append(ops.dequantize(codes, p.scale, p.zero_point))
            got = self._cut(program, region, step, known, reals)
            tally = self.tally(f"{region.name}:{step.output}", step.kind)
            if PLANNED[step.kind].gives_float:
                tally.add_floats(values[step.output], got)
            else:
                p = self._params(path, region, step.output)
                wanted = self._codes(path, region, step.output, values)
                tally.add(wanted, ops.quantize(got, p.scale, p.zero_point, p.qmax))

    def _cut(
        self,
        program: Program,
        region: Region,
        step: Step,
        known: tuple[str, ...],
        reals: list[Tensor],
    ) -> Tensor:
        ids = region.values
        alone, used = program.cut(ids[step.output], [ids[name] for name in known])
        panels = self._panels([region.panels[i] for i in used])
        text = alone.text()
        return ops.run_region(reals, panels, ops.region_constants(panels, text), text)[0]

    def _panels(self, panels: list[str | Tensor]) -> list[Tensor]:
        found = []
        for panel in panels:
            if isinstance(panel, str):
                layer = self.frozen.get_submodule(panel)
                assert isinstance(layer, QLayer)
                found.append(layer.current_panel())
            else:
                found.append(panel)
        return found

    def _watch_frozen(self, path: str, forward: CapturedForward) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            tensors = flow_arguments(forward.flow, forward.__signature__, args, kwargs)
            waiting = self.pending.get(path)
            if tensors is None or not waiting:
                return forward(*args, **kwargs)
            return self._apart(path, forward, tensors, waiting.pop(0))

        return run

    def _apart(
        self,
        path: str,
        forward: CapturedForward,
        tensors: tuple[Tensor, ...],
        wanted: dict[str, Tensor],
    ) -> Any:
        """The frozen module on its own, with every stored value compared."""
        values: dict[str, Any] = dict(zip(forward.flow.parameters, tensors, strict=True))
        for item in forward.items:
            if isinstance(item, Step):
                evaluate(item, self.frozen.get_submodule, values)
                continue
            inputs = [values[wide(name)].float() for name in item.inputs]
            panels = self._panels(list(item.panels))
            names = [n for n in item.values if n not in item.inputs]
            outputs = tuple(item.values[n] for n in names)
            text = replace(parse(item.program), outputs=outputs).text()
            results = ops.run_region(inputs, panels, ops.region_constants(panels, text), text)
            found = dict(zip(names, results, strict=True))
            for step in item.steps:
                if not PLANNED[step.kind].gives_float:
                    p = self._params(path, item, step.output)
                    mine = ops.quantize(found[step.output], p.scale, p.zero_point, p.qmax)
                    theirs = self._codes(path, item, step.output, wanted)
                    self.tally(f"{item.name}:{step.output}", step.kind).add_apart(theirs, mine)
            values.update({name: found[name] for name in item.outputs})
        return substitute(forward.flow.output, lambda ref: values[ref.name])
