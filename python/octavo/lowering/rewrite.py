"""The only writer: a float model, a plan and integers become an integer model, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from octavo.graph.flow import Flow, Step
from octavo.graph.keys import RangeKey, SiteKey, ValueKey
from octavo.lowering.lower import lower
from octavo.nn.decomposed.decompose import recompose
from octavo.nn.forwards import replace_forward, replacement, restore_forward
from octavo.nn.layer import QLayer
from octavo.nn.registry import quantized_class
from octavo.nn.surgery import copy_model, replace_modules
from octavo.numerics.codes import Codes
from octavo.numerics.ranges import spanning
from octavo.numerics.scheme import QParams
from octavo.ops.region_steps import PRODUCTS
from octavo.planning.plan import FlowPlan, Plan, RegionPlan, SitePlan
from octavo.runtime.captured_forward import CapturedForward, Region, captured_forward

__all__ = ["dequantize", "install", "rewrite", "sums_are_finite"]


def rewrite(
    model: nn.Module,
    plan: Plan,
    params: Mapping[RangeKey, QParams],
    integers: Mapping[str, Codes],
    inplace: bool = False,
) -> nn.Module:
    """The model with quantized layers in place of its sites, and its regions installed.

    Args:
        model: the float model that the plan was made for, folded, in eval mode.
        plan: how each site and flow is stored and run.
        params: ranges of values and of layers' inputs (`octavo.prepare.calibrate`).
        integers: name of each site with a scheme to its integers.
        inplace: change ``model`` itself instead of a copy.

    Raises:
        ValueError: a site without integers, a static site without a range, or a module whose
            forward is replaced on the instance and was captured all the same.
    """
    inputs = _input_params(plan, params)
    layers: dict[int, nn.Module] = {}
    for site in plan.sites:
        if site.scheme is None:
            continue
        module = model.get_submodule(site.name)
        if id(module) not in layers:
            layers[id(module)] = _quantized(module, site, inputs.get(site.name), integers)
    # Tables and factors are read from the float model, so before any of it is replaced.
    captured = [(flow_plan.flow, _items(model, flow_plan, params)) for flow_plan in plan.flows]
    result = replace_modules(model, layers) if inplace else copy_model(model, layers)
    for flow, items in captured:
        install(result, flow, items)
    return result


def _items(
    model: nn.Module, flow_plan: FlowPlan, params: Mapping[RangeKey, QParams]
) -> tuple[Region | Step, ...]:
    """The flow's items with programs in place of plans."""
    path = flow_plan.flow.path
    ranges = {
        key.value: found
        for key, found in params.items()
        if isinstance(key, ValueKey) and key.path == path
    }
    items: list[Region | Step] = []
    for item in flow_plan.items:
        if isinstance(item, Step):
            items.append(item)
            continue
        program = lower(item, ranges, model)
        items.append(
            Region(
                item.name,
                program.text,
                program.panels,
                program.inputs,
                program.outputs,
                program.values,
                item.steps,
            )
        )
    return tuple(items)


def _quantized(
    module: nn.Module, site: SitePlan, input_params: QParams | None, integers: Mapping[str, Codes]
) -> QLayer:
    assert site.scheme is not None
    quantized, reason = quantized_class(module)
    if quantized is None:
        raise ValueError(
            f"layer {site.name!r}: expected a layer with an integer form, got {reason}."
        )
    if site.name not in integers:
        raise ValueError(
            f"layer {site.name!r}: expected integers for it, got none. Round it first."
        )
    if site.activations == "static" and input_params is None:
        raise ValueError(
            f"layer {site.name!r}: expected the range of its input, got none. "
            "Calibrate it first, or plan dynamic activations."
        )
    codes = integers[site.name]
    packed = is_packed(site, codes.codes.dim())
    if packed and site.activations != "float":
        _check_sums(site.name, codes)
    return quantized.from_float(
        module,
        codes.codes,
        codes.scale,
        codes.bias,
        site.scheme.bits,
        grid=site.scheme.grid,
        levels=codes.levels,
        zero_point=codes.zero_point,
        group_size=site.scheme.group_size,
        activations=site.activations,
        packed=packed,
        input_params=input_params if site.activations == "static" else None,
        path=site.name,
    )


def _check_sums(name: str, codes: Codes) -> None:
    """Layers of few bits add up weights times codes of inputs before the inputs' scale comes in."""
    weight = codes.codes.reshape(len(codes.codes), -1).double() * codes.spread().double()
    if not sums_are_finite(weight):
        largest = float(weight.abs().sum(1).max())
        raise ValueError(
            f"quantize: layer {name!r}: weights whose sums with 8-bit inputs are finite in float32 "
            f"expected, got a row whose sizes add up to {largest:.3g}. Divide the weights, or take "
            "activations='float'."
        )


def sums_are_finite(weight: Tensor) -> bool:
    """Whether a weight [rows, inputs] times 8-bit codes adds up to float32 numbers in each row."""
    if not weight.numel():
        return True
    return float(weight.double().abs().sum(1).max()) * 255 <= torch.finfo(torch.float32).max


def is_packed(site: SitePlan, rank: int) -> bool:
    """Whether a layer keeps its weights in few bits in memory: those without a kernel, alone."""
    if site.scheme is None or site.region or rank != 2:
        return False
    few = site.scheme.bits <= 4 or not site.scheme.is_plain
    return few or site.activations == "float"


def _input_params(plan: Plan, params: Mapping[RangeKey, QParams]) -> dict[str, QParams]:
    """The input's range of each static site: where its own forward runs, any of its calls may come.

    It spans that of its calls outside of regions and those of what regions give it.
    """
    found = {
        site.name: [params[SiteKey(site.name)]]
        for site in plan.sites
        if SiteKey(site.name) in params
    }
    for flow_plan in plan.flows:
        for region in flow_plan.items:
            if not isinstance(region, RegionPlan):
                continue
            for step in region.steps:
                for part in (step, *step.fused):
                    if part.module and part.kind in PRODUCTS:
                        value = region.params_of.get(step.inputs[0], "")
                        key = ValueKey(flow_plan.flow.path, value)
                        if key in params:
                            found.setdefault(part.module, []).append(params[key])
    return {name: spanning(ranges) for name, ranges in found.items()}


def install(root: nn.Module, flow: Flow, items: tuple[Region | Step, ...]) -> None:
    """Makes ``items`` the forward of the module at the flow's path."""
    module = root.get_submodule(flow.path)
    if replacement(module) is not None and captured_forward(module) is None:
        raise ValueError(
            f"module {flow.path!r}: expected its class's forward, "
            "got one replaced on the instance. Restore it, or leave the module out."
        )
    runtime = CapturedForward(module, flow, items)
    replace_forward(module, runtime)
    runtime.prepare()


def dequantize(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with its float classes again, the weights being code times scale.

    Regions are gone: the classes' own forwards run. What folding did to normalisations stays done.
    """
    layers: dict[int, nn.Module] = {
        id(module): module.to_float() for module in model.modules() if isinstance(module, QLayer)
    }
    result = replace_modules(model, layers) if inplace else copy_model(model, layers)
    for module in result.modules():
        if captured_forward(module) is not None:
            restore_forward(module)
    return recompose(result)
