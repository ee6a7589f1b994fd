"""A quantized model as one file that describes itself.

The file holds canonical codes, scales and biases, the model's other tensors, and as JSON: the
schemes, the programs of the regions with their steps, and the paths and types of all modules.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn

from octavo.checkpoint import safetensors_file
from octavo.checkpoint.format import FORMAT_VERSION, file_name, join, range_to_data, tensors_of
from octavo.checkpoint.trainee import save_trainee
from octavo.errors import describe
from octavo.graph.flow import Flow, Step, to_data
from octavo.interrupts import held_back
from octavo.nn.decomposed.decompose import name_in_files
from octavo.nn.layer import QLayer
from octavo.reporting.record import record_of
from octavo.runtime.captured_forward import Region, captured_forward
from octavo.signature import known_arguments
from octavo.training.trainee import training_of
from octavo.types import FilePath

__all__ = ["save", "stored_bytes"]


@held_back()
@known_arguments
def save(model: nn.Module, path: FilePath) -> None:
    """Writes a quantized model, or a trainee, to one safetensors file.

    What was at ``path`` is replaced when the file is complete, not before.

    Example:
        >>> import torch, octavo
        >>> small = octavo.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)).eval(), 8)
        >>> octavo.save(small, "small.safetensors")

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: no layer of it is quantized, or it holds something that a file cannot hold.
        OSError: the file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save: expected a quantized nn.Module, got {describe(model)}.")
    version = ".".join(map(str, FORMAT_VERSION))
    training = training_of(model)
    if training is not None:
        save_trainee(model, training, path, version)
        return
    if not any(isinstance(module, QLayer) for module in model.modules()):
        raise ValueError(
            "save: expected a quantized model, got one without quantized layers. Use torch.save "
            "for float models."
        )
    tensors, content = _described(model)
    safetensors_file.write(
        path, tensors, {"format": "octavo", "version": version, "model": content}
    )


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that `save` writes for a quantized model; its header is not counted."""
    return sum(tensor.nbytes for tensor in _described(model)[0].values())


def _described(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The tensors of the file, and everything else about the model as JSON text."""
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[int, str] = {}
    layers: dict[str, Any] = {}
    for name, module in modules.items():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"save: expected modules whose state is tensors, got {type(module).__name__} "
                f"{name!r} with extra state."
            )
        for key, tensor in tensors_of(module):
            full = file_name(join(name, key))
            if id(tensor) in seen:
                tied[full] = seen[id(tensor)]
            else:
                seen[id(tensor)] = full
                tensors[full] = tensor
        if isinstance(module, QLayer):
            tensors[file_name(join(name, "weight_packed"))] = module.weight_packed()
            if module.group_size:  # These are bfloat16 numbers.
                scale = file_name(join(name, "weight_scale"))
                tensors[scale] = module.weight_scale.detach().bfloat16()
            if module.levels is not None:
                tensors[file_name(join(name, "weight_levels"))] = module.levels
            zero_point = module.weight_zero_point
            if zero_point is not None:
                tensors[file_name(join(name, "weight_zero_point"))] = zero_point
            layers[name] = _layer_data(module)
    flows = [
        _flow_data(forward.flow, forward.items, tensors)
        for forward in map(captured_forward, modules.values())
        if forward is not None
    ]
    record = record_of(model)
    try:
        content = json.dumps(
            {
                "modules": {name: _type_name(module) for name, module in modules.items()},
                "layers": layers,
                "flows": [to_data(flow) for flow in flows],
                "tied": tied,
                "record": None if record is None else record.to_dict(),
            },
            separators=(",", ":"),
        )
    except TypeError as error:
        raise ValueError(
            f"save: expected captured calls of plain data, got another one ({error})."
        ) from error
    return tensors, content


def _layer_data(layer: QLayer) -> dict[str, Any]:
    p = layer.input_params
    return {
        "type": type(layer).__name__,
        "bits": layer.bits,
        "grid": layer.grid,
        "group_size": layer.group_size,
        "symmetric": layer.symmetric,
        "activations": layer.activations,
        "packed": layer.packed,
        "shape": list(layer.weight_shape),
        "bias": layer.bias is not None,
        "input": None if p is None else range_to_data(p),
    }


def _flow_data(
    flow: Flow, items: tuple[Region | Step, ...], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Flow and items as data; tables of regions go to ``tensors``."""
    data: list[Any] = []
    for item in items:
        if isinstance(item, Step):
            data.append(item)
            continue
        panels: list[Any] = []
        for index, panel in enumerate(item.panels):
            if isinstance(panel, Tensor):
                name = file_name(f"{item.name}.panel{index}")
                tensors[name] = panel
                panels.append({"tensor": name})
            else:
                panels.append(panel)
        data.append(
            {
                "name": item.name,
                "program": item.program,
                "panels": panels,
                "inputs": item.inputs,
                "outputs": item.outputs,
                "values": dict(item.values),
                "steps": item.steps,
            }
        )
    return {"flow": flow, "items": data}


def _type_name(module: nn.Module) -> str:
    return name_in_files(module.float_class if isinstance(module, QLayer) else type(module))
