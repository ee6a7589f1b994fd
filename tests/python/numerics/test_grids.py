"""grids: level tables by value, nearest levels by midpoints, exact k-means."""

import itertools

import pytest
import torch

import octavo
from octavo.numerics.grids import (
    GRIDS,
    Snap,
    apot,
    codes_of,
    kmeans,
    levels_of,
    log,
    neighbours,
    nf,
    pot,
    snap,
    values_of,
)
from octavo.numerics.scheme import Scheme


def test_the_list():
    assert octavo.grids() == ("linear", "pot", "apot", "log", "kmeans", "nf")


def test_levels_by_value():
    assert pot(4) == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    assert pot(2) == [-1, 0, 1]
    # 0 .1 .2 .3 .4 .6 .8 1 times 10.
    assert apot(4) == [-10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10]
    assert apot(3) == [-4, -2, -1, 0, 1, 2, 4]
    assert max(apot(5)) == 48 and len(set(apot(6))) == 63 and max(apot(7)) == 127
    assert apot(8) == list(range(-127, 128))
    assert log(3, 0.5) == [-127, -64, -32, 0, 32, 64, 127]
    nf4 = "-1 -.696193 -.525073 -.394917 -.284441 -.184773 -.091050 0 "
    nf4 += ".079580 .160930 .246112 .337915 .440710 .562617 .722957 1"
    assert nf(4) == [round(127 * float(v)) for v in nf4.split()]
    nf3 = [-1, -0.535023, -0.246931, 0, 0.183337, 0.381994, 0.622986, 1]
    assert nf(3) == [round(127 * v) for v in nf3]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", [g for g in GRIDS if g != "linear"])
def test_tables_are_ascending_s8_of_full_length(grid, bits):
    torch.manual_seed(0)
    weight = torch.randn(130, 40)
    scale = weight.abs().amax(1, keepdim=True) / 127
    levels = levels_of(Scheme(bits, grid), weight, scale)
    assert levels.dtype == torch.int8 and tuple(levels.shape) == (3, 2**bits)
    assert bool((levels[:, 1:] >= levels[:, :-1]).all()) and int(levels.min()) >= -127


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("grid", ["pot", "nf", "log"])
def test_nearest_is_by_value(grid, bits):
    make = {"pot": pot, "nf": nf, "log": log}[grid]
    levels = sorted(make(bits))
    levels += levels[-1:] * (2**bits - len(levels))
    table = torch.tensor([levels], dtype=torch.int8)
    u = torch.cat([torch.linspace(-140, 140, 5001), torch.arange(-256, 257) / 2])[None]
    found = snap(u, Scheme(bits, grid), table)
    distance = (u[0][:, None] - table[0].float()[None]).abs()
    assert torch.equal((u - found)[0].abs(), distance.min(1).values)
    # Of two levels equally near, the lower.
    ties = (distance == distance.min(1, keepdim=True).values).sum(1) > 1
    lower = table[0].float()[distance.argmin(1)]
    assert torch.equal(found[0][ties], lower[ties])
    below, above = neighbours(u, Scheme(bits, grid), table)
    inside = (u >= table.min()) & (u < table.max())
    assert bool(((below <= u) & (u <= above))[inside].all())


def test_rows_read_the_table_of_their_channel():
    levels = torch.tensor([[-2, -1, 0, 1], [-90, -30, 30, 90]], dtype=torch.int8)
    u = torch.full((66 * 2, 3), 40.0)
    found = Snap(Scheme(2, "kmeans"), levels)(u, rows=2)
    assert found[:128].unique().tolist() == [1.0] and found[128:].unique().tolist() == [30.0]
    found = Snap(Scheme(2, "kmeans"), levels)(u[:4], rows=2, first=63)
    assert found[:, 0].tolist() == [1.0, 1.0, 30.0, 30.0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_and_values(bits):
    torch.manual_seed(0)
    weight = torch.randn(70, 12)
    levels = levels_of(Scheme(bits, "nf"), weight, weight.abs().amax(1, keepdim=True) / 127)
    values = snap(weight * 40, Scheme(bits, "nf"), levels).to(torch.int8)
    codes = codes_of(values, bits, levels)
    assert -(2 ** (bits - 1)) <= int(codes.min()) and int(codes.max()) < 2 ** (bits - 1)
    assert torch.equal(values_of(codes, bits, levels), values)
    assert codes_of(values, bits, None) is values


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_the_best_of_all_tables(weighted):
    torch.manual_seed(0)
    values = torch.randint(-12, 13, (25,)).float() + 0.25
    weights = torch.rand(25) if weighted else torch.ones(25)

    def error(table):
        off = values[:, None] - torch.tensor(table).float()[None]
        return float((weights * off.square().min(1).values).sum())

    best = min(error(c) for c in itertools.combinations(range(-12, 14), 4))
    assert error(kmeans(values, weights, 2).tolist()) == pytest.approx(best, rel=1e-5)


def test_kmeans_of_few_values_is_exact():
    assert set(range(-3, 4)) <= set(kmeans(torch.arange(-3.0, 4.0), torch.ones(7), 3).tolist())
    assert kmeans(torch.zeros(0), torch.zeros(0), 3).shape == (8,)
