"""A file of a quantized model, installed in a freshly built float model.

Loading traces nothing and decides nothing again: the loaded model gives the bits of the saved one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from octavo.checkpoint import safetensors_file
from octavo.checkpoint.format import FORMAT_VERSION, file_name, join, range_from_data, tensors_of
from octavo.checkpoint.trainee import load_trainee
from octavo.errors import CheckpointError, describe
from octavo.files.typed import fits, made
from octavo.graph.flow import Flow, Step, from_data
from octavo.graph.flow_check import FlowCheck
from octavo.interrupts import held_back
from octavo.lowering.rewrite import install
from octavo.nn.decomposed.decompose import decompose, is_decomposable, name_in_files
from octavo.nn.layer import QLayer
from octavo.nn.registry import quantized_class
from octavo.nn.state import StateError, StateForm, read_state
from octavo.nn.surgery import copy_model
from octavo.numerics.grids import GRIDS
from octavo.numerics.scheme import Activations
from octavo.ops.region_program import parse
from octavo.prepare.fold import materialise
from octavo.reporting.record import Record, attach
from octavo.runtime.captured_forward import Region
from octavo.signature import known_arguments
from octavo.types import FilePath, Model

__all__ = ["load"]

_BAD_DATA = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)

# What the description of a quantized model holds; more is checked where it is used.
_CONTENT: dict[str, Any] = {
    "modules": dict[str, str],
    "layers": dict[str, dict[str, Any]],
    "flows": list[Any],
    "tied": dict[str, str],
}


@held_back()
@known_arguments
def load(path: FilePath, model: Model) -> Model:
    """The quantized model that ``save`` has written, in eval mode. ``model`` provides its code.

    A trainee comes back as it was, in the mode it was in, with Parameters of its own.

    Example:
        >>> import octavo
        >>> fast = octavo.load("fast.safetensors", build_model())  # doctest: +SKIP

    Args:
        path: a file that `save` wrote.
        model: a float model of the architecture that was quantized, with any weights. It stays as
        it is.

    Raises:
        TypeError: ``model`` is no nn.Module.
        OSError: there is no such file, or it may not be read.
        CheckpointError: the file is damaged, no octavo file, or made for another architecture.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"load: expected a float nn.Module to install the file in, got {describe(model)}. "
            "Build the model first: octavo.load(path, build_model())."
        )
    if any(isinstance(module, QLayer) for module in model.modules()):
        raise ValueError(
            "load: expected a float model, got one with quantized layers. Build it again."
        )
    where = f"load: {describe(os.fspath(path))}"
    tensors, metadata = safetensors_file.read(path)
    content = _content(metadata, tensors, where)
    with torch.inference_mode(False), torch.no_grad():
        try:
            if isinstance(content, str):
                return cast(Model, load_trainee(content, tensors, model, where))
            return cast(Model, _Loader(content, tensors, _plain(model), where).result())
        except CheckpointError:
            raise
        except _BAD_DATA as error:
            raise CheckpointError(
                f"{where}: expected the data that octavo writes, got something else "
                f"({type(error).__name__}: {describe(str(error))}). The file is damaged."
            ) from error


def _plain(model: nn.Module) -> nn.Module:
    """``model``, or a copy of it whose weights are plain tensors, all of them in layers."""
    if not is_decomposable(model) and not any(map(_is_computed, model.modules())):
        return model
    copied = copy_model(model)
    for _ in materialise(copied):
        pass
    return decompose(copied)


def _is_computed(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return hasattr(module, "parametrizations") or any(
        type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in hooks
    )


def _content(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], where: str
) -> dict[str, Any] | str:
    """The model's description; the text of a trainee's."""
    if metadata.get("format") != "octavo":
        floats = sum(tensor.is_floating_point() for tensor in tensors.values())
        raise CheckpointError(
            f"{where}: expected a model that octavo.save wrote, got {len(tensors)} tensors "
            f"({floats} float) without "
            "quantization metadata. Load them into the float model and call octavo.quantize."
        )
    version = metadata.get("version", "")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major[:9]) != FORMAT_VERSION[0]:
        raise CheckpointError(
            f"{where}: expected format version {FORMAT_VERSION[0]}.x, got {describe(version)}. "
            "Use the octavo that wrote it, or a newer one."
        )
    if "sha256" not in metadata:
        raise CheckpointError(
            f"{where}: expected a SHA-256 among the metadata, got none. The file is damaged."
        )
    if "trainee" in metadata:
        return metadata["trainee"]
    try:
        content = json.loads(metadata.get("model", ""))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: expected JSON in the model's metadata, got {error}."
        ) from None
    for key, kind in _CONTENT.items():
        if not isinstance(content, dict) or not fits(content.get(key), kind):
            raise CheckpointError(
                f"{where}: expected {key!r} in the model's metadata, got none of its kind."
            )
    return dict(content)


def _identity_with_hooks_of(module: nn.Module) -> nn.Identity:
    identity = nn.Identity()
    for name, table in vars(module).items():
        if "hooks" in name:
            vars(identity)[name] = table
    return identity


class _Loader:
    """One file being installed in a copy of one model."""

    def __init__(
        self, content: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module, where: str
    ) -> None:
        self.content = content
        self.tensors = tensors
        self.model = model
        self.where = where
        self.used: set[str] = set()
        self.allowed = FlowCheck(model)

    def fail(
        self, expected: str, got: str, remedy: str = "The file is damaged."
    ) -> CheckpointError:
        return CheckpointError(f"{self.where}: expected {expected}, got {got}. {remedy}")

    def result(self) -> nn.Module:
        replaced = self.replacements()
        flows = [self.flow(data) for data in self.content["flows"]]
        result = copy_model(self.model, replaced)
        self.fill(result)
        left = sorted(set(self.tensors) - self.used)
        if left:
            raise self.fail(
                "tensors that the model knows", f"{len(left)} others ({describe(left[:5])})"
            )
        result.eval()
        for flow, items in flows:
            try:
                install(result, flow, items)
            except RuntimeError as error:
                raise self.fail("region programs that can run", f"an error ({error})") from error
        record = self.content.get("record")
        if record is not None:
            attach(result, Record.from_dict(record))
        return result

    # ---- structure

    def replacements(self) -> dict[int, nn.Module]:
        """What takes the place of modules of the float model, by their id."""
        there = dict(self.model.named_modules())
        wanted = self.content["modules"]
        self.compare(there, wanted)
        layers = self.content["layers"]
        if not layers or not set(layers) <= set(wanted):
            raise self.fail(
                "layers among the modules", describe(sorted(set(layers) - set(wanted))[:5])
            )
        replaced: dict[int, nn.Module] = {}
        for name, module in there.items():
            if name in layers:
                replaced[id(module)] = self.layer(name, module, layers[name])
            elif wanted[name] != name_in_files(type(module)):
                # Folding has put the identity in a normalisation's place: nothing else may differ.
                replaced[id(module)] = _identity_with_hooks_of(module)
        return replaced

    def compare(self, there: Mapping[str, nn.Module], wanted: Mapping[str, str]) -> None:
        wrong = [
            f"{name!r}: {wanted[name]} in the file, {name_in_files(type(there[name]))} in the model"
            for name in wanted
            if name in there
            and wanted[name] != name_in_files(type(there[name]))
            and not (wanted[name] == "Identity" and "Norm" in type(there[name]).__name__)
        ]
        missing = [name for name in wanted if name not in there]
        extra = [name for name in there if name not in wanted]
        for name in missing:
            near = difflib.get_close_matches(name, extra, 1)
            wrong.append(f"{name!r}: not in the model" + (f" (near: {near[0]!r})" if near else ""))
        wrong += [f"{name!r}: not in the file" for name in extra]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise self.fail(
                "the architecture that was saved",
                f"{len(wrong)} differences: {'; '.join(wrong[:5])}{more}",
                "Build the model as it was built before quantizing.",
            )

    # ---- layers

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.fail(f"tensor {name!r}", "none")
        self.used.add(name)
        return self.tensors[name]

    def layer(self, name: str, module: nn.Module, data: Any) -> QLayer:
        quantized, reason = quantized_class(module)
        if quantized is None:
            raise self.fail(f"layer {name!r} to have an integer form", reason)
        bits, grid = data["bits"], data["grid"]
        if type(bits) is not int or not 2 <= bits <= 8:
            raise self.fail(f"layer {name!r}: bits in 2..8", describe(bits))
        if grid not in GRIDS:
            raise self.fail(f"layer {name!r}: a grid of {', '.join(GRIDS)}", describe(grid))
        if data["type"] != quantized.__name__:
            raise self.fail(f"layer {name!r} to be a {quantized.__name__}", describe(data["type"]))
        shape = tuple(quantized.canonical_weight(module).shape)
        if tuple(data["shape"]) != shape:
            raise self.fail(
                f"layer {name!r}: shape {list(shape)} as the model has it",
                f"{describe(data['shape'])} in the file",
                "Build the model as it was built before quantizing.",
            )
        prefix, p = join(name, ""), data["input"]
        try:
            input_params = None if p is None else range_from_data(p, f"{prefix}input")
            form, activations = self.form(name, quantized, data, shape)
            members = {key: self.take(file_name(prefix + key)) for key in form.members}
            state = read_state(form, members, prefix)
        except StateError as error:
            raise CheckpointError(f"{self.where}: {error} The file is damaged.") from None
        return quantized.from_float(
            module,
            state.values,
            state.scale,
            state.bias,
            bits,
            grid=grid,
            levels=state.levels,
            zero_point=state.zero_point,
            group_size=form.group_size,
            activations=activations,
            packed=form.packed,
            input_params=input_params,
            path=name,
        )

    def form(
        self, name: str, quantized: type[QLayer], data: Any, shape: tuple[int, ...]
    ) -> tuple[StateForm, Activations | None]:
        """What the layer's state consists of, and its activations; 1.0 did not have all of it."""
        size = data.get("group_size", 0)
        if type(size) is not int or (size and (size % 16 or not 16 <= size <= 256)):
            raise self.fail(
                f"layer {name!r}: group_size 0 or a multiple of 16 in 16..256", describe(size)
            )
        how, packed = data.get("activations"), data.get("packed", False)
        if how not in (None, "static", "dynamic", "float"):
            raise self.fail(f"layer {name!r}: static, dynamic or float activations", describe(how))
        if how is not None and (how == "static") != (data["input"] is not None):
            raise self.fail(f"layer {name!r}: a range for {how} activations or none", "the other")
        if type(packed) is not bool or (packed and len(shape) != 2) or (size and not packed):
            raise self.fail(f"layer {name!r}: packed to be a bool that fits", describe(packed))
        bits, has_levels = data["bits"], GRIDS[data["grid"]] is not None
        symmetric = data.get("symmetric", True)
        if type(symmetric) is not bool or not (
            symmetric or (packed and not has_levels and bits < 8)
        ):
            raise self.fail(
                f"layer {name!r}: symmetric to be a bool that fits", describe(symmetric)
            )
        bias = data["bias"]
        if type(bias) is not bool or (bias and quantized.looks_up):
            raise self.fail(f"layer {name!r}: bias to be a bool that fits", describe(bias))
        packed = packed or quantized.looks_up
        return StateForm(shape, bits, has_levels, size, symmetric, packed, bias), how

    # ---- everything else that has a value

    def fill(self, result: nn.Module) -> None:
        """Gives the copy the tensors that belong to no layer."""
        tied = self.content["tied"]
        given: dict[str, nn.Parameter | Tensor] = {}
        for path, module in result.named_modules():
            if isinstance(module, QLayer):
                self.used.update(file_name(join(path, key)) for key, _ in tensors_of(module))
                continue
            for key, old in list(tensors_of(module)):
                name = file_name(join(path, key))
                source = tied.get(name, name)
                if source not in given:
                    new = self.take(source)
                    if new.shape != old.shape:
                        raise self.fail(
                            f"{name}: shape {list(old.shape)} as the model has it",
                            f"{list(new.shape)} in the file",
                            "Build the model as it was built before quantizing.",
                        )
                    is_parameter = isinstance(old, nn.Parameter)
                    if new.is_floating_point() != old.is_floating_point():
                        raise self.fail(f"{name} as {old.dtype} or a similar type", str(new.dtype))
                    given[source] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                table: dict[str, Any] = (
                    module._parameters if key in module._parameters else module._buffers
                )
                table[key] = given[source]

    # ---- flows

    def flow(self, data: Any) -> tuple[Flow, tuple[Region | Step, ...]]:
        found = from_data(data)
        flow = found["flow"]
        if not isinstance(flow, Flow) or flow.path in self.content["layers"]:
            raise self.fail("a flow of one of the modules", describe(flow))
        items = [item if isinstance(item, Step) else self.region(item) for item in found["items"]]
        steps = [i.steps if isinstance(i, Region) else (i,) for i in items]
        try:
            self.allowed.check(flow, [step for part in steps for step in part])
        except ValueError as error:
            raise CheckpointError(f"{self.where}: {error} The file is damaged.") from None
        return flow, tuple(items)

    def region(self, data: Mapping[str, Any]) -> Region:
        panels: list[str | Tensor] = []
        for panel in data["panels"]:
            if isinstance(panel, str):
                if panel not in self.content["layers"]:
                    raise self.fail("regions made of quantized layers", describe(panel))
                panels.append(panel)
            else:
                panels.append(self.take(panel["tensor"]))
        if not fits(data["steps"], tuple[Step, ...]):
            got = [step for step in data["steps"] if not isinstance(step, Step)]
            raise self.fail("steps", describe(got[0] if got else data["steps"]))
        region = made(Region, {**data, "panels": tuple(panels)})
        program = parse(region.program)
        if not all(0 <= i < len(program.lines) for i in region.values.values()):
            raise self.fail(
                f"values 0..{len(program.lines) - 1} in region {region.name!r}", "others"
            )
        if not set(region.inputs) <= set(region.values) or len(region.outputs) != len(
            program.outputs
        ):
            raise self.fail(
                f"inputs and outputs of region {region.name!r} in its program", "others"
            )
        return region
