"""Trainees in files: the plan, the ranges they started from, and every tensor of theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from octavo.checkpoint import safetensors_file
from octavo.checkpoint.format import file_name, range_from_data, range_to_data
from octavo.errors import CheckpointError, describe
from octavo.files.typed import fits
from octavo.graph.flow_check import FlowCheck
from octavo.nn.decomposed.decompose import decompose, name_in_files
from octavo.nn.fake_quantize import METHODS, FakeQuantize, FakeQuantizeWeight
from octavo.nn.fake_quantize_dynamic import FakeQuantizeDynamic
from octavo.nn.state import StateError
from octavo.nn.surgery import copy_model
from octavo.numerics.grids import GRIDS
from octavo.planning.plan import Plan
from octavo.prepare.calibrate import plan_keys
from octavo.training.trainee import Training, make_trainee

__all__ = ["load_trainee", "save_trainee"]

# What the description of a trainee holds; more is checked where it is used.
_CONTENT: dict[str, Any] = {
    "modules": dict[str, str],
    "plan": dict[str, Any],
    "params": dict[str, list[Any]],
    "batch_norms": list[list[str]],
    "float_bytes": int,
    "method": str | None,
    "tied": dict[str, str],
    "training": bool,
}


def save_trainee(
    trainee: nn.Module, training: Training, path: str | os.PathLike[str], version: str
) -> None:
    """Writes a trainee to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in trainee.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                "save: expected modules whose state is tensors, "
                f"got {type(tensor).__name__} under {name!r}."
            )
        full = file_name(name)
        if id(tensor) in seen:
            tied[full] = seen[id(tensor)]
        else:
            seen[id(tensor)] = full
            tensors[full] = tensor.detach()
    try:
        plan = json.loads(training.plan.to_json())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"save: expected captured calls of plain data, got another one ({error})."
        ) from error
    content = {
        "modules": _float_modules(trainee),
        "plan": plan,
        "params": {str(key): range_to_data(p) for key, p in training.params.items()},
        "batch_norms": training.batch_norms,
        "float_bytes": training.float_bytes,
        "method": training.method,
        "tied": tied,
        "training": trainee.training,
    }
    metadata = {
        "format": "octavo",
        "version": version,
        "trainee": json.dumps(content, separators=(",", ":")),
    }
    safetensors_file.write(path, tensors, metadata)


def load_trainee(
    text: str, tensors: Mapping[str, Tensor], model: nn.Module, where: str
) -> nn.Module:
    """The trainee of a file, in a copy of ``model``."""
    try:
        content = json.loads(text)
        for key, kind in _CONTENT.items():
            if not isinstance(content, dict) or not fits(content.get(key), kind):
                raise ValueError(f"no {key!r} of its kind")
        plan = Plan.from_json(json.dumps(content["plan"]))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected the plan of a trainee, got {error}.") from None
    model = decompose(copy_model(model), training=True)
    there = _float_modules(model)
    wrong = sorted(
        name
        for name in {*there, *content["modules"]}
        if there.get(name) != content["modules"].get(name)
    )
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{where}: expected the architecture that was saved, got {len(wrong)} differences, the "
            f"first at {name!r}: {content['modules'].get(name)} in the file, {there.get(name)} in "
            "the model. Build the model as it was built before quantizing."
        )
    _check_plan(plan, model, there, where)
    method = content["method"]
    if method is not None and method not in METHODS:
        raise CheckpointError(f"{where}: expected a known method, got {describe(method)}.")
    try:
        ranges = {
            key: range_from_data(value, f"range {describe(key)}")
            for key, value in content["params"].items()
        }
    except StateError as error:
        raise CheckpointError(f"{where}: {error} The file is damaged.") from None
    params = {key: ranges[str(key)] for key in plan_keys(plan) if str(key) in ranges}
    norms = tuple((a, b) for a, b in content["batch_norms"])
    for norm, layer in norms:
        if not there.get(norm, "").startswith("BatchNorm") or layer not in there:
            raise CheckpointError(
                f"{where}: expected normalisations behind layers, got {describe((norm, layer))}. "
                "The file is damaged."
            )
    trainee = make_trainee(
        model, plan, params, batch_norms=norms,
        float_bytes=content["float_bytes"], method=method, inplace=True,
    )  # fmt: skip
    tied = content["tied"]
    state, used = {}, set()
    for name, old in trainee.state_dict().items():
        full = file_name(name)
        source = tied.get(full, full)
        if source not in tensors or tensors[source].shape != old.shape:
            got = list(tensors[source].shape) if source in tensors else "none"
            raise CheckpointError(
                f"{where}: expected tensor {full!r} of shape {list(old.shape)}, got {got}. The "
                "file is damaged."
            )
        if tensors[source].dtype is not old.dtype:
            raise CheckpointError(
                f"{where}: expected {full!r} as {old.dtype}, got {tensors[source].dtype}. Build "
                "the model with the saved types."
            )
        state[name] = tensors[source]
        used.add(source)
    left = sorted(set(tensors) - used)
    if left:
        raise CheckpointError(
            f"{where}: expected tensors that the trainee knows, got {len(left)} others "
            f"({describe(left[:5])}). The file is damaged."
        )
    trainee.load_state_dict(state)
    return trainee.train(content["training"])


def _float_modules(model: nn.Module) -> dict[str, str]:
    """Names and types of the modules that are not fake-quantizers."""
    found: dict[str, str] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (FakeQuantize, FakeQuantizeDynamic, FakeQuantizeWeight)):
            if name.rpartition(".")[2] != "weight_quantizer":
                inside.append(name.rpartition(".")[0])  # The table of a layer's values.
            continue
        found[name] = name_in_files(type(module))
    for name in inside:
        found.pop(name, None)
    return found


def _check_plan(plan: Plan, model: nn.Module, modules: Mapping[str, str], where: str) -> None:
    """CheckpointError unless every layer and call is one of the model's or of the table."""
    missing = [site.name for site in plan.sites if site.name not in modules]
    if missing:
        raise CheckpointError(
            f"{where}: expected modules of the model, got {describe(missing[:5])}. "
            "The file is damaged."
        )
    for site in plan.sites:
        if not 2 <= site.activation_bits <= 8 or (site.scheme and site.scheme.grid not in GRIDS):
            raise CheckpointError(
                f"{where}: expected layer {site.name!r} with activations of 2..8 bits and a grid "
                f"of {', '.join(GRIDS)}, got {describe(site)}."
            )
    allowed = FlowCheck(model)
    for flow in plan.flows:
        try:
            allowed.check(flow.flow, flow.steps)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error} The file is damaged.") from None
