"""The exact bytes of a quantized model, from its plan alone: nothing is rounded or calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from octavo.checkpoint.save import stored_bytes
from octavo.checks.arguments import check_widths
from octavo.data import Batches
from octavo.deciding.decide import decide
from octavo.graph.keys import RangeKey, SiteKey
from octavo.lowering.rewrite import rewrite
from octavo.nn.registry import canonical_weight, layer_bias, looks_up
from octavo.nn.surgery import copy_model
from octavo.numerics.codes import Codes
from octavo.numerics.grids import GRIDS, TABLE_CHANNELS
from octavo.numerics.scheme import QParams
from octavo.numerics.sqnr import tensor_bytes
from octavo.planning.plan import Plan, SitePlan
from octavo.prepare.calibrate import Calibration, plan_keys, without_unreached
from octavo.prepare.fold import fold
from octavo.reporting.report import resident_bytes

__all__ = ["Footprint", "footprint"]


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model before and after.

    Attributes:
        float_bytes: parameters and buffers of the float model.
        bytes: all that the quantized one keeps in memory, on the instruction set in use.
        file_bytes: tensors of the file that `octavo.save` writes, without its header; None where it
            refuses the model (a module with extra state).
    """

    float_bytes: int
    bytes: int
    file_bytes: int | None


@torch.no_grad()
def footprint(
    model: nn.Module,
    batches: Batches | None = None,
    *,
    bits: Any = 8,
    activations: str | int | None = None,
    grid: str = "linear",
    group_size: SupportsIndex | str | None = None,
    symmetric: bool = True,
) -> Footprint:
    """What `octavo.quantize` would make of ``model`` with these arguments, in bytes.

    Layers of zeros take the places of the quantized ones. This needs memory for a copy of the model
    and for a quarter of it.

    Args:
        model: the float model; it stays as it is.
        batches: the data, None where the model is to be quantized without.
        bits: as for `octavo.quantize`, as are all that follow.
        activations: "dynamic", "float", or the bits of static ones.
        grid: levels that codes stand for.
        group_size: inputs that share a weight scale; None: the default.
        symmetric: False where weight scales have zero points.
    """
    float_bytes = tensor_bytes(model)
    work = copy_model(model).eval()
    example = None if batches is None else batches.example(work)
    found = fold(work, example).captured
    widths, how, activation_bits = check_widths(bits, activations, batches is not None)
    if isinstance(widths, Plan):
        decided = widths
    else:
        decided = decide(
            work, found, widths=widths, activations=how, activation_bits=activation_bits,
            grid=grid, group_size=group_size, symmetric=symmetric, strict=False, batches=batches,
            progress=False,
        ).plan  # fmt: skip
    reached = {site.name for site in found.sites if site.calls != 0}
    if batches is not None and any(site.activations == "static" for site in decided.sites):
        decided = without_unreached(decided, _never_called(decided, reached))
    # With data, biases are fitted: every layer has one.
    fitted = reached if batches is not None else set()
    codes = {
        site.name: _zeros(work.get_submodule(site.name), site, site.name in fitted)
        for site in decided.sites
        if site.scheme is not None
    }
    made = rewrite(work, decided, _ranges(decided), codes, inplace=True)
    try:
        stored = stored_bytes(made)
    except ValueError:
        stored = None
    return Footprint(float_bytes, resident_bytes(made), stored)


def _never_called(plan: Plan, reached: set[str]) -> Calibration:
    alone = [site for site in plan.sites if site.activations == "static" and not site.region]
    keys = tuple(SiteKey(site.name) for site in alone if site.name not in reached)
    return Calibration(_ranges(plan), {}, keys)


def _ranges(plan: Plan) -> dict[RangeKey, QParams]:
    return {key: QParams(1.0, 0) for key in plan_keys(plan)}


def _zeros(module: nn.Module, site: SitePlan, fitted: bool) -> Codes:
    """Codes of the right sizes."""
    assert site.scheme is not None
    weight = canonical_weight(module)
    rows, size = weight.shape[0], site.scheme.group_size
    columns = weight[:1].numel()
    scale = (
        torch.ones(rows, max(1, -(-columns // size)), dtype=torch.float32)
        if size
        else torch.ones(rows, dtype=torch.float32)
    )
    own = layer_bias(module)
    has_bias = own is not None or (fitted and not looks_up(module))
    levels: Tensor | None = None
    if GRIDS[site.scheme.grid] is not None:
        tables = -(-rows // TABLE_CHANNELS)
        levels = torch.zeros(tables, 2**site.scheme.bits, dtype=torch.int8)
    return Codes(
        torch.zeros(weight.shape, dtype=torch.int8),
        scale,
        torch.zeros(rows, dtype=torch.float32) if has_bias else None,
        site.scheme,
        levels,
        None if site.scheme.symmetric else torch.zeros(rows, scale[0].numel(), dtype=torch.uint8),
    )
