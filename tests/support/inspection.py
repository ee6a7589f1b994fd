"""What tests read from quantized models: report rows, region programs, multiply-adds, bytes of a state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import octavo
from octavo import _C
from octavo.nn.layer import QLayer
from octavo.runtime.captured_forward import Region, captured_forward


def rows_of(model: nn.Module) -> dict[str, Any]:
    """Report rows by layer name; each has bits (0 for float), region and reason."""
    return {row.layer.name: row.layer for row in octavo.report(model).rows}


def state_bytes(model: nn.Module) -> str:
    """One hash over every parameter and buffer, names and values."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def integer_share(model: nn.Module, small: nn.Module, *inputs: Any) -> float:
    """Multiply-adds that octavo's operators counted in `small`, as a share of all that the float model does."""
    # The fused attention of eval mode is one operator that torch's counter does not know.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                model(*inputs)
            _C.reset_integer_macs()
            small(*inputs)
            return float(_C.integer_macs()) / (counter.get_total_flops() / 2)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def all_tensors(value: Any) -> list[Tensor]:
    """Every tensor inside a nested result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in all_tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in all_tensors(v)]
    return []


def regions_of(model: nn.Module) -> list[tuple[nn.Module, Region]]:
    """Every region with the module whose forward it is part of."""
    found = []
    for module in model.modules():
        forward = captured_forward(module)
        if forward is not None:
            found += [(module, item) for item in forward.items if isinstance(item, Region)]
    return found


def region_programs(model: nn.Module) -> list[str]:
    """Programs of all regions."""
    return [region.program for _, region in regions_of(model)]


@dataclass
class OneRegion:
    """A region with its weights as canonical codes (for simulation) and its panels (to run it)."""

    program: str
    layers: dict[int, Any]
    panels: list[Tensor]


def the_region(model: nn.Module) -> OneRegion:
    """The only region of a model. Codes come from the state_dict's bit stream, unpacked without octavo."""
    from simulate import Layer, unpack

    [(_owner, region)] = regions_of(model)
    state = model.state_dict()
    layers: dict[int, Any] = {}
    panels: list[Tensor] = []
    for index, panel in enumerate(region.panels):
        if isinstance(panel, Tensor):
            layers[index] = panel
            panels.append(panel)
            continue
        module = model.get_submodule(panel)
        assert isinstance(module, QLayer)
        codes = unpack(state[f"{panel}.weight_packed"], module.weight_shape, module.bits)
        bias = state.get(f"{panel}.bias")
        scale = state[f"{panel}.weight_scale"]
        layers[index] = Layer(codes, scale, torch.zeros_like(scale) if bias is None else bias)
        panels.append(module.current_panel())
    return OneRegion(region.program, layers, panels)


def run_with_all_values(region: OneRegion, inputs: list[Tensor]) -> dict[int, Tensor]:
    """Runs the region with every value as an output: floats, u8 values dequantized."""
    lines = [line for line in region.program.splitlines() if not line.startswith("out ")]
    ids = [int(line.split(" ", 1)[0]) for line in lines[1:]]
    program = "\n".join([*lines, *(f"out {i}" for i in ids)]) + "\n"
    constants = octavo.ops.region_constants(region.panels, program)
    results = octavo.ops.run_region(inputs, region.panels, constants, program)
    return dict(zip(ids, results, strict=True))
