"""The only writer: a float model, a plan and integers become an integer model, and back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from octavo.flow import Flow, Step
from octavo.lower import lower
from octavo.nn.layer import QLayer
from octavo.nn.region import CapturedForward, Region, captured_forward
from octavo.nn.registry import quantized_class
from octavo.plan import FlowPlan, Plan, RegionPlan, SitePlan
from octavo.rounding import Codes
from octavo.scheme import QParams
from octavo.separate import rejoin

__all__ = ["copy_model", "dequantize", "install", "replace_modules", "rewrite"]


def rewrite(
    model: nn.Module,
    plan: Plan,
    params: Mapping[str, QParams],
    integers: Mapping[str, Codes],
    inplace: bool = False,
) -> nn.Module:
    """The model with quantized layers in place of its sites, and its regions installed.

    Args:
        model: the float model that the plan was made for, folded, in eval mode.
        plan: what becomes of each site and flow.
        params: "<flow path>:<value>" and "site:<name>" to the range of a value
        (`octavo.calibrate`).
        integers: name of each site with a scheme to its integers.
        inplace: change ``model`` itself instead of a copy.

    Raises:
        ValueError: a site without integers, a static site without a range, or a module whose
        forward is replaced on
            the instance and was captured all the same.
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
    model: nn.Module, flow_plan: FlowPlan, params: Mapping[str, QParams]
) -> tuple[Region | Step, ...]:
    """The flow's items with programs in place of plans."""
    prefix = f"{flow_plan.flow.path}:"
    ranges = {
        key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)
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
            f"layer {site.name!r}: expected the range of its input, got none. Calibrate it first, "
            "or plan "
            "dynamic activations."
        )
    codes = integers[site.name]
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
        packed=is_packed(site, codes.codes.dim()),
        input_params=input_params if site.activations == "static" else None,
        path=site.name,
    )


def is_packed(site: SitePlan, rank: int) -> bool:
    """Whether a layer keeps its weights in few bits in memory: those without a kernel, alone."""
    if site.scheme is None or site.region or rank != 2:
        return False
    few = site.scheme.bits <= 4 or not site.scheme.is_plain
    return few or site.activations == "float"


def _input_params(plan: Plan, params: Mapping[str, QParams]) -> dict[str, QParams]:
    """The input's range of each static site: its own, or that of what its region reads."""
    found = {
        site.name: params[f"site:{site.name}"]
        for site in plan.sites
        if f"site:{site.name}" in params
    }
    for flow_plan in plan.flows:
        for region in flow_plan.items:
            if not isinstance(region, RegionPlan):
                continue
            for step in region.steps:
                for part in (step, *step.fused):
                    if part.module and part.kind.split("_")[0] in ("conv", "linear"):
                        value = region.params_of.get(step.inputs[0])
                        key = f"{flow_plan.flow.path}:{value}"
                        if key in params:
                            found.setdefault(part.module, params[key])
    return found


def install(root: nn.Module, flow: Flow, items: tuple[Region | Step, ...]) -> None:
    """Makes ``items`` the forward of the module at the flow's path."""
    module = root.get_submodule(flow.path)
    if "forward" in module.__dict__ and captured_forward(module) is None:
        raise ValueError(
            f"module {flow.path!r}: expected its class's forward, got one replaced on the "
            "instance. "
            "Restore it, or leave the module out."
        )
    runtime = CapturedForward(module, flow, items)
    module.__dict__["forward"] = runtime
    runtime.prepare()


# What a layer that replaces another has to itself: the rest it shares with the model it came from.
_OWN = frozenset({"_parameters", "panel", "_prepared", "input_params", "float_class"})


# ---- copies --------------------------------------------------------------------------------------


def copy_model(
    model: nn.Module,
    replaced: Mapping[int, nn.Module] | None = None,
    shared: Iterable[Tensor] = (),
) -> nn.Module:
    """A deep copy; tensors that are no leaves become clones, hook callables stay the same objects.

    Args:
        model: any module.
        replaced: id of a module to the module that stands for it, wherever it is referred to.
        shared: tensors that the copy has in common with ``model``.
    """
    memo: dict[int, Any] = dict(replaced or {})
    memo.update((id(parameter), parameter) for parameter in shared)
    kept: list[Any] = []  # memo holds ids: what they belong to must live as long.
    for module in model.modules():
        for name, table in module.__dict__.items():
            if "hooks" in name and isinstance(table, dict):
                for hook in table.values():
                    memo[id(hook)] = hook
            elif not name.startswith("_"):
                _clone_non_leaves(table, memo, kept)
        for tensors in (module._parameters, module._buffers):
            _clone_non_leaves(tensors, memo, kept)
    # A layer that replaces another one took over its hook tables: the copy needs tables of its own.
    result: nn.Module = memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)
    for layer in (replaced or {}).values():
        for name, value in layer.__dict__.items():
            if name not in _OWN:
                layer.__dict__[name] = copy.deepcopy(value, memo)
    for module in result.modules():
        if parametrize.is_parametrized(module):
            # Its class was made for one module, and removing the parametrization changes the class.
            own = {
                k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")
            }
            module.__class__ = type(type(module).__name__, type(module).__bases__, own)
    return result


def _clone_non_leaves(value: Any, memo: dict[int, Any], kept: list[Any], depth: int = 0) -> None:
    if isinstance(value, Tensor):
        if not value.is_leaf and id(value) not in memo:
            with torch.no_grad():
                memo[id(value)] = value.detach().clone()
            kept.append(value)
    elif isinstance(value, (list, tuple)) and depth < 4:
        for item in value:
            _clone_non_leaves(item, memo, kept, depth + 1)
    elif isinstance(value, dict) and depth < 4:
        for item in value.values():
            _clone_non_leaves(item, memo, kept, depth + 1)


def replace_modules(model: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """``model`` itself with modules replaced wherever it has them as children."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    if id(model) in replaced:
        # The root is the layer: the object that the caller holds becomes the new layer.
        layer = replaced[id(model)]
        model.__dict__.clear()
        model.__class__ = type(layer)
        model.__dict__.update(layer.__dict__)
    return model


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
            del module.__dict__["forward"]
    return rejoin(result)
