"""The torchvision networks: quantize with and without data, run, save, load, same bits; and every code of three of
them against an independent float64 simulation of the plan.

Long size: all fourteen at 224 px. Short size: three at 64 px, and one of the simulations.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from budgets import INTEGER_SHARE, NETWORK_SQNR_DYNAMIC, NETWORK_SQNR_STATIC
from conftest import FULL, ROOT

SHORT = ("resnet18", "shufflenet_v2_x1_0", "squeezenet1_1")
ALL = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
)
SIZE = 224 if FULL else 64


@pytest.fixture
def table(torchvision: Any) -> Any:
    """benchmarks/table_torchvision.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import table_torchvision

        return table_torchvision
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", ALL if FULL else SHORT)
def test_quantize_run_save_load(name: str, table: Any, tmp_path: Path) -> None:
    assert table.MODELS == ALL
    model = table.float_model(name)
    size = 224 if name.startswith("vit") else SIZE
    for with_data in (False, True):
        r = table.measure(name, model, with_data, size, tmp_path)
        print(r)
        assert r.same_bits
        assert r.sqnr >= (NETWORK_SQNR_STATIC if with_data else NETWORK_SQNR_DYNAMIC), r
        assert r.integer_layers > 0
        assert r.sqnr < 200, "logits that are all equal prove nothing"
        if name in table.CONVOLUTIONAL:
            assert r.integer_share >= INTEGER_SHARE, r
            assert r.integer_share <= 1.0
            assert r.integer_layers == r.layers, r
            if with_data:
                assert r.regions == 1, r
            assert r.shrink >= 3.0, r


@pytest.mark.parametrize(
    "name",
    ("resnet18", "mobilenet_v3_large", "shufflenet_v2_x1_0") if FULL else ("shufflenet_v2_x1_0",),
)
@torch.no_grad()
def test_codes_equal_a_float64_simulation(name: str, table: Any) -> None:
    """Every value of the region, code by code, and the logits bit by bit."""
    from inspection import run_with_all_values, the_region
    from simulate import simulate

    model = table.float_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = octavo.quantize(
            model, 8, data=list(table.images(8, 64, 7).split(4)), progress=False
        )
    region = the_region(small)
    x = table.images(2, 64, 11)
    expected = simulate(region.program, [x], region.layers)
    actual = run_with_all_values(region, [x])
    assert set(actual) == set(expected) and len(expected) > 20
    compared = 0
    for number, value in expected.items():
        got = actual[number]
        if value.integer:
            got = torch.round(got.double() / value.scale) + value.zero
        assert got.shape == value.data.shape
        different = int((got.double() != value.data).sum())
        assert different == 0, f"value {number}: {different} of {value.data.numel()} differ"
        compared += value.data.numel()
    print(f"{name}: {len(expected)} sites, {compared} codes equal")
    # Test the test: codes vary, and few of them sit at the ends.
    codes = torch.cat([v.data.flatten() for v in expected.values() if v.integer])
    assert codes.unique().numel() > 200
    assert torch.equal(small(x), actual[max(actual)])


def test_float_model_is_built_alike(table: Any) -> None:
    a, b = table.float_model("squeezenet1_1"), table.float_model("squeezenet1_1")
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
