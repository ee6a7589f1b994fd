"""Plan and ranges to a trainee: the model with fake-quantizers where the integer model stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from octavo.graph.flow import Flow, Ref, Step, substitute
from octavo.graph.functions import operation
from octavo.graph.keys import Entry, RangeKey, SiteKey, ValueKey, is_narrow, wide
from octavo.graph.kinds import clamp_of
from octavo.nn.decomposed.decompose import decompose
from octavo.nn.fake_quantize import FakeQuantize, FakeQuantizeWeight, Monitor, default_method
from octavo.nn.fake_quantize_dynamic import FakeQuantizeDynamic
from octavo.nn.forwards import replace_forward
from octavo.nn.layer import QLayer
from octavo.nn.registry import quantized_class
from octavo.nn.surgery import copy_model
from octavo.nn.trained_layer import TrainedLayer
from octavo.numerics.scheme import QParams
from octavo.ops.region_steps import PRODUCTS, TABLE
from octavo.planning.plan import FlowPlan, Plan, RegionPlan, SitePlan
from octavo.rounding.methods.nearest import nearest
from octavo.runtime.trained_forward import Compute, Store, TrainedForward
from octavo.signature import known_arguments

__all__ = ["Training", "forget", "make_trainee", "range_parameters", "training_of"]

_ATTRIBUTE = "octavo_training"


@dataclass(frozen=True)
class Training:
    """What a trainee was made from, kept on it for `octavo.freeze`.

    Attributes:
        plan: of the integer model.
        batch_norms: (BatchNorm, layer it will be folded into).
        float_bytes: of the float model.
        params: ranges it started from.
        method: the argument ``qat_method``.
    """

    plan: Plan
    batch_norms: tuple[tuple[str, str], ...]
    float_bytes: int
    params: Mapping[RangeKey, QParams]
    method: str | None


def training_of(model: nn.Module) -> Training | None:
    """What a trainee was made from, None for any other model."""
    found = model.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Training) else None


def forget(model: nn.Module) -> None:
    """Makes a copy of a trainee an ordinary model again, as far as this record goes."""
    model.__dict__.pop(_ATTRIBUTE, None)


@known_arguments
def range_parameters(trainee: nn.Module) -> list[nn.Parameter]:
    """The trained steps, zero points and clips: what "lsq", "lsq+" and "pact" add to the model.

    Give them to the optimizer, without weight decay.

    Example:
        >>> import torch, octavo
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(),
        ...     torch.nn.Linear(64, 8))
        >>> trainee = octavo.quantize(model, (4, 4), data=torch.randn(32, 64), qat=True)
        >>> len(octavo.range_parameters(trainee))  # two weights, one activation below 5 bits
        3
    """
    return [
        parameter
        for module in trainee.modules()
        if isinstance(module, (FakeQuantize, FakeQuantizeWeight))
        for parameter in module.parameters(recurse=False)
    ]


def make_trainee(
    model: nn.Module,
    plan: Plan,
    params: Mapping[RangeKey, QParams],
    *,
    batch_norms: tuple[tuple[str, str], ...] = (),
    float_bytes: int = 0,
    method: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """The trainee: the same Parameters in a copy of everything else.

    Args:
        model: the float model as the user has it, nothing folded.
        plan: of its folded copy.
        params: ranges to start from (`octavo.prepare.calibrate`).
        batch_norms: what was folded in that copy.
        float_bytes: of the float model, for the report.
        method: a row of `octavo.nn.fake_quantize.METHODS`; None: by the bits of each value.
        inplace: make ``model`` itself the trainee.
    """
    result = model if inplace else copy_model(model, shared=model.parameters())
    with torch.inference_mode(False), torch.no_grad():
        decompose(result, training=True)
        builder = _Builder(result, plan, params, method)
        for flow_plan in plan.flows:
            builder.capture(flow_plan)
        for site in plan.sites:
            if site.scheme is not None:
                builder.layer(site)
    result.__dict__[_ATTRIBUTE] = Training(plan, batch_norms, float_bytes, dict(params), method)
    return result


class _Builder:
    def __init__(
        self, model: nn.Module, plan: Plan, params: Mapping[RangeKey, QParams], method: str | None
    ) -> None:
        self.model, self.params, self.method = model, params, method
        self.layers: dict[str, type[QLayer]] = {}
        for site in plan.sites:
            if site.scheme is not None:
                quantized, reason = quantized_class(model.get_submodule(site.name))
                if quantized is None:
                    raise ValueError(
                        f"layer {site.name!r}: expected a layer with an integer form, got {reason}."
                    )
                self.layers[site.name] = quantized
        self.monitor = Monitor()
        self.sources: dict[str, FakeQuantize] = {}  # of each layer's input, its first call's

    def quantizer(self, layer: str, key: str, start: QParams, what: str, relu: bool) -> str:
        """Adds a fake-quantizer to a layer; returns the name under which it stands there."""
        method = self.method or default_method(start.bits)
        return self.add(layer, key, FakeQuantize(start, method, what, self.monitor, relu))

    def add(self, layer: str, key: str, made: nn.Module) -> str:
        """Puts a fake-quantizer of a value into a layer; returns its name there."""
        module = self.model.get_submodule(layer)
        if not hasattr(module, "value_quantizers"):
            module.register_module("value_quantizers", nn.ModuleDict())
        table = module.value_quantizers
        assert isinstance(table, nn.ModuleDict)
        name = key.replace(".", "_")
        while hasattr(table, name):  # Taken, or a method of nn.Module.
            name += "_"
        table[name] = made.train(module.training)
        return name

    def found(self, layer: str, key: str) -> FakeQuantize:
        """A fake-quantizer by where it stands."""
        table = self.model.get_submodule(layer).value_quantizers
        assert isinstance(table, nn.ModuleDict)
        quantizer = table[key]
        assert isinstance(quantizer, FakeQuantize)
        return quantizer

    def layer(self, site: SitePlan) -> None:
        """Gives a layer its weight's fake-quantizer and its forward."""
        module, quantized = self.model.get_submodule(site.name), self.layers[site.name]
        weight = module.weight
        assert isinstance(weight, torch.Tensor) and site.scheme is not None
        start = nearest(quantized.canonical_weight(module), None, site.scheme)
        quantizer = FakeQuantizeWeight(
            weight,
            start.scale,
            site.scheme,
            self.method or default_method(site.scheme.bits),
            axis=quantized.channel_axis(module),
            what=f"layer {site.name!r}",
            levels=start.levels,
            zero_point=start.zero_point,
        )
        source: FakeQuantize | FakeQuantizeDynamic | None = self.sources.get(site.name)
        seen = self.params.get(SiteKey(site.name))
        what = f"the input of layer {site.name!r}"
        if site.activations == "dynamic":
            source = FakeQuantizeDynamic(what, self.monitor)
            self.add(site.name, "input", source)
        elif source is None and site.activations == "static" and seen is not None:
            key = self.quantizer(site.name, "input", seen, what, False)
            source = self.found(site.name, key)
        module.register_module("weight_quantizer", quantizer.train(module.training))
        replace_forward(module, TrainedLayer(module, quantized, source))

    def capture(self, flow_plan: FlowPlan) -> None:
        """Makes the actions of a flow the forward of its module."""
        actions: list[Compute | Store] = []
        stored: dict[str, _Stored] = {}
        for item in flow_plan.items:
            if isinstance(item, RegionPlan):
                actions += _Stretch(self, flow_plan.flow, item, stored).actions()
            else:
                actions += [
                    self.compute(flow_plan.flow, part, None) for part in item.fused or (item,)
                ]
        module = self.model.get_submodule(flow_plan.flow.path)
        runtime = TrainedForward(module, flow_plan.flow, tuple(actions))
        replace_forward(module, runtime)
        runtime.prepare()

    def compute(self, flow: Flow, part: Step, names: Callable[[str], str] | None) -> Compute:
        """A float call that reads the values that ``names`` gives, in a region; None: in none.

        A layer in a region reads what has been fake-quantized, any other does that itself.
        """
        training = flow.training.get(part.output)
        if names is None:
            return Compute(part, training)
        return Compute(
            _renamed(part, names),
            None if training is None else _renamed(training, names),
            part.module in self.layers and not part.args and not part.kwargs,
        )


@dataclass(frozen=True)
class _Stored:
    """What a flow has of a value that is stored: its name, and where its fake-quantizer stands."""

    result: str
    key: tuple[str, str]


class _Stretch:
    """One region as float calls and stores.

    Attributes:
        stored: of the whole flow. A value has one fake-quantizer, whatever regions read it: the
            integer model has one set of parameters for it.
    """

    def __init__(
        self, builder: _Builder, flow: Flow, region: RegionPlan, stored: dict[str, _Stored]
    ) -> None:
        self.builder, self.flow, self.region, self.stored = builder, flow, region, stored
        self.names: dict[str, str] = {}
        self.makers = {
            part.output: part.module for step in flow.steps for part in step.fused or (step,)
        }
        products = [step for step in region.steps if step.kind in PRODUCTS]
        self.home = products[0].module
        self.readers = {step.inputs[0]: step.module for step in reversed(products)}
        self.keys: dict[str, tuple[str, str]] = {}

    def actions(self) -> Iterator[Compute | Store]:
        region = self.region
        for value in region.inputs:
            if self.is_stored(value):
                if value not in self.stored:
                    entry = str(Entry(value, region.name))  # The float keeps its own name.
                    yield self.store(wide(value), value, entry)
                    self.stored[value] = _Stored(entry, self.keys[value])
                known = self.stored[value]
                self.names[value], self.keys[value] = known.result, known.key
        for step in region.steps:
            if step.kind == TABLE.planned and is_narrow(step.output):  # A value in a second width.
                (value,) = step.inputs
                yield self.store(self.name(value), step.output, step.output)
                self.stored[step.output] = _Stored(step.output, self.keys[step.output])
                continue
            yield from self.step(step)

    def is_stored(self, value: str) -> bool:
        """Whether the value owns its parameters.

        One that shares those of a later concat is stored there, one that passes on the codes of
        another is those codes.
        """
        return self.region.params_of.get(value) == value

    def name(self, value: str) -> str:
        return self.names.get(value, value)

    def step(self, step: Step) -> Iterator[Compute | Store]:
        parts = list(step.fused or (step,))
        product = step.kind in PRODUCTS
        layer = next(i for i, p in enumerate(parts) if p.module == step.module) if product else -1
        if product:
            self.home = step.module
            self.builder.sources.setdefault(step.module, self.source(step.inputs[0]))
        narrow = step.inputs[0]

        def with_narrow(name: str) -> str:
            return narrow if name == wide(narrow) else self.name(name)

        relu, after = None, list[Step]()
        if self.is_stored(step.output):
            while len(parts) > 1 and self.is_dropout(parts[-1]):
                after.insert(0, parts.pop())
            if len(parts) > 1 and _is_relu(parts[-1]):
                relu = _renamed(parts.pop(), self.name)
        for index, part in enumerate(parts):
            names = with_narrow if is_narrow(narrow) and index <= layer else self.name
            yield self.builder.compute(self.flow, part, names)
        if self.is_stored(step.output):
            result = parts[-1].output if relu is None else relu.output
            value = result if relu is None else relu.inputs[0]
            stored = self.store(value, step.output, result, relu is not None)
            yield replace(stored, relu=relu)
            self.stored[step.output] = _Stored(step.output, self.keys[step.output])
            for part in after:
                yield self.builder.compute(self.flow, part, self.name)

    def is_dropout(self, part: Step) -> bool:
        """Whether the call is an identity in evaluation mode; a folded BatchNorm's is not."""
        if part.kind != "identity":
            return False
        module = self.builder.model.get_submodule(part.module) if part.module else None
        return not isinstance(module, nn.modules.batchnorm._BatchNorm)

    def source(self, value: str) -> FakeQuantize:
        """The fake-quantizer whose codes a layer reads as ``value``."""
        return self.builder.found(*self.keys[self.region.params_of[value]])

    def store(self, value: str, root: str, result: str, relu: bool = False) -> Store:
        """A store with a new fake-quantizer, in the layer that reads it or has come last."""
        start = self.builder.params[ValueKey(self.flow.path, root)]
        maker = self.makers.get(wide(root))
        what = f"the output of layer {maker!r}" if maker else f"value {root!r}"
        is_entry = root in self.region.inputs or is_narrow(root)
        layer = self.readers.get(root, self.home) if is_entry else self.home
        key = self.builder.quantizer(layer, root, start, what, relu)
        self.keys[root] = layer, key
        return Store(value, result, root, layer, key)


def _is_relu(step: Step) -> bool:
    """Whether the call is max(x, 0) and nothing else."""
    name = operation(step.function) if step.function else ""
    limits = clamp_of(step)
    return limits == (0.0, float("inf")) and (bool(step.module) or name == "relu")


def _renamed(step: Step, names: Callable[[str], str]) -> Step:
    def rename(ref: Ref) -> Ref:
        return Ref(names(ref.name))

    return replace(
        step,
        inputs=tuple(map(names, step.inputs)),
        args=substitute(step.args, rename),
        kwargs=tuple((key, substitute(value, rename)) for key, value in step.kwargs),
        fused=(),
    )
