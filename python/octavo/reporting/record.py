"""What `quantize` decided and found, kept on the model so that `report` can show it later."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from octavo.files.typed import made
from octavo.nn.registry import canonical_weight
from octavo.numerics.codes import Codes
from octavo.numerics.sqnr import bytes_of, sqnr
from octavo.planning.plan import Plan

__all__ = ["LayerRecord", "Record", "attach", "layer_records", "record_of"]

_ATTRIBUTE = "octavo_record"


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """One layer that could have been quantized.

    Attributes:
        bits: width of its codes; 0 where it stays float.
        region: name of the region that runs it, "" when it runs alone.
        reason: why it stays float.
        activations: "static", "dynamic" or "float".
        float_bytes: bytes of its float parameters.
        weight_sqnr, output_sqnr: decibels against the float layer, None where not measured. The
            output's includes the error of all layers before it, on the calibration data.
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
    equalized: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """What `quantize` decided and found for a whole model.

    Attributes:
        float_bytes: parameters and buffers of the float model.
        notes: messages for the user.
    """

    layers: tuple[LayerRecord, ...]
    float_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of `to_dict`; unknown keys, of later versions, are ignored.

        Raises KeyError or TypeError for other data.
        """
        known = {f.name for f in dataclasses.fields(LayerRecord)}
        layers = tuple(
            made(LayerRecord, {k: v for k, v in dict(layer).items() if k in known})
            for layer in data["layers"]
        )
        fields = {"layers": layers, "float_bytes": data["float_bytes"]}
        return made(cls, {**fields, "notes": tuple(data.get("notes", ()))})


def attach(model: nn.Module, record: Record) -> None:
    """Keep the record on the model, where deepcopy and pickle take it along."""
    model.__dict__[_ATTRIBUTE] = record


def record_of(model: nn.Module) -> Record | None:
    """The record of a quantized model, None for any other."""
    return model.__dict__.get(_ATTRIBUTE)


def layer_records(
    model: nn.Module,
    plan: Plan,
    codes: Mapping[str, Codes],
    output_sqnr: Mapping[str, float],
    equalized: Container[str] = (),
) -> tuple[LayerRecord, ...]:
    """One record for each site of the plan.

    Args:
        model: the float model, folded.
        plan: what becomes of each site.
        codes: layer to its rounded weights, for sites that are quantized.
        output_sqnr: layer to the SQNR of its output in dB, where it was measured.
        equalized: layers whose channels were rescaled.
    """
    records = []
    for site in plan.sites:
        module = model.get_submodule(site.name)
        own = [*module._parameters.values(), *module._buffers.values()]
        size = bytes_of(t for t in own if t is not None)
        if site.scheme is None:
            records.append(
                LayerRecord(
                    site.name, site.type, region=site.region, reason=site.reason, float_bytes=size
                )
            )
            continue
        weight = canonical_weight(module)
        records.append(
            LayerRecord(
                site.name,
                site.type,
                site.scheme.bits,
                site.scheme.grid,
                site.scheme.granularity,
                site.activations,
                site.region,
                site.reason,
                size,
                sqnr(weight, codes[site.name].dequantize()),
                output_sqnr.get(site.name),
                site.name in equalized,
            )
        )
    return tuple(records)
