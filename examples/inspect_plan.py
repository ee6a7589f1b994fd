"""A plan is a value: printed, kept as JSON, edited, and followed.

python examples/inspect_plan.py
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import octavo
from octavo.data import Batches
from octavo.graph.capture import capture
from octavo.nn.surgery import copy_model
from octavo.numerics.scheme import Scheme
from octavo.planning.plan import plan
from octavo.prepare.fold import fold


def network() -> nn.Module:
    """A small convolutional network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def decided(model: nn.Module, batches: list[torch.Tensor]) -> octavo.Plan:
    """What `octavo.quantize(model, 8, data=batches)` decides before it touches a weight."""
    work = copy_model(model)  # Folding writes into the model it is given.
    example = Batches(batches).example(work)
    fold(work, example)
    return plan(capture(work, example), Scheme(8), "static")


def with_bits(old: octavo.Plan, bits: dict[str, int]) -> octavo.Plan:
    """The plan with other widths for some layers; plans are frozen, so this is a new one."""
    sites = tuple(
        dataclasses.replace(site, scheme=dataclasses.replace(site.scheme, bits=bits[site.name]))
        if site.scheme and site.name in bits
        else site
        for site in old.sites
    )
    return dataclasses.replace(old, sites=sites)


def main() -> int:
    model = network()
    batches = list(torch.randn(32, 3, 16, 16).split(8))

    first = decided(model, batches)
    print(first, "\n")

    edited = with_bits(first, {"3": 4})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"  # Text: it can be edited by hand and compared in git.
        file.write_text(edited.to_json())
        print(f"plan.json: {file.stat().st_size} bytes")
        small = octavo.quantize(model, file, data=batches, progress=False)
    print(octavo.report(small))

    same = octavo.Plan.from_json(edited.to_json()).to_json() == edited.to_json()
    print("\nthe plan comes back from its file:", same)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
