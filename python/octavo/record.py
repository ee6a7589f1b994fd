"""What `quantize` decided and found, kept on the model so that `report` can tell it later, after loading too."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

__all__ = ["LayerRecord", "Record", "attach", "record_of"]

_ATTRIBUTE = "octavo_record"


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """One layer that could have been quantized.

    bits 0: it stays float, and ``reason`` says why. region: name of the region that runs it, "" when it runs alone.
    activations: "static", "dynamic" or "float". float_bytes: of its float parameters.
    weight_sqnr, output_sqnr: decibels against the float layer, None where not measured. The output's includes the
    error of all layers before it, on the calibration data.
    """

    name: str
    type: str
    bits: int = 0
    grid: str = ""
    granularity: str = ""
    activations: str = "float"
    region: str = ""
    reason: str = ""
    float_bytes: int = 0
    weight_sqnr: float | None = None
    output_sqnr: float | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """All of it. float_bytes: parameters and buffers of the float model. notes: whatever else was worth saying."""

    layers: tuple[LayerRecord, ...]
    float_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of `to_dict`; unknown keys are ignored, so that later versions may add some."""
        known = {f.name for f in dataclasses.fields(LayerRecord)}
        layers = tuple(
            LayerRecord(**{k: v for k, v in layer.items() if k in known})
            for layer in data["layers"]
        )
        return cls(layers, int(data["float_bytes"]), tuple(map(str, data.get("notes", ()))))


def attach(model: nn.Module, record: Record) -> None:
    """Keep the record on the model, where deepcopy and pickle take it along."""
    model.__dict__[_ATTRIBUTE] = record


def record_of(model: nn.Module) -> Record | None:
    """The record of a quantized model, None for any other."""
    return model.__dict__.get(_ATTRIBUTE)
