"""front: points that were measured, and which no other beats."""

import json

import pytest
import torch
from torch import nn

import octavo
from octavo.advice.pareto import Point, _beats

X = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def score(candidate):
    with torch.no_grad():
        return -float((candidate(X) - model()(X)).norm())


@pytest.fixture(scope="module")
def found():
    return octavo.pareto_front(
        model(), X, evaluate=score, bits=(8, 4, (4, 4), {"*": 2}), grids=("linear", "nf"), rounds=3,
        effort="fast", progress=False,
    )  # fmt: skip


def test_points_are_what_quantize_gives(found):
    names = [point.name for point in found.points]
    assert names[:4] == ["float", "8 bits linear", "4 bits linear", "4 bits, activations 4 linear"]
    assert names[5] == "8 bits nf" and len(names) == 9
    floats, eight, four = found.points[:3]
    assert floats.score == 0 and eight.score > four.score
    small = octavo.quantize(model(), 4, X, effort="fast", progress=False)
    assert four.score == pytest.approx(score(small)) and four.bytes == octavo.report(small).bytes
    assert floats.bytes == 4 * (64 * 64 + 64 + 64 * 8 + 8)
    assert four.file_bytes < 0.6 * eight.file_bytes
    assert all(point.seconds > 0 for point in found.points)
    assert found.samples == 64 and found.isa == octavo.isa()


def test_tables_and_plain_data(found):
    text = str(found)
    assert "memory KiB" in text and text.count("\n") == 12
    assert all(point.name in text for point in found.points)
    assert json.loads(json.dumps(found.to_dict()))["points"][0]["name"] == "float"
    html = found._repr_html_()
    assert html.count("<tr>") == 10 and "4 bits, activations 4 nf" in html


def test_what_no_other_beats(found):
    assert found.points[0].best and found.best  # Nothing scores as the float model does.
    a = Point("a", 90.0, 100, 50, 1.0)
    assert not _beats(a, a)
    assert _beats(a, Point("b", 90.0, 100, 50, 1.2))
    assert not _beats(a, Point("b", 90.0, 100, 50, 1.04))  # Equal times.
    assert _beats(a, Point("b", 89.0, 100, 50, 0.97))
    assert not _beats(a, Point("b", 89.0, 100, 50, 0.9))
    assert not _beats(a, Point("b", 91.0, 200, 90, 2.0))
    assert _beats(a, Point("b", 90.0, 100, 51, 1.0))


def test_one_setting_without_data_and_equal_names():
    one = octavo.pareto_front(
        model(), evaluate=score, bits=8, inputs=X[:1], rounds=1, progress=False
    )  # fmt: skip
    assert [point.name for point in one.points] == ["float", "8 bits"] and one.samples == 1
    two = octavo.pareto_front(
        model(), iter([X]), evaluate=score, bits=(8, 8), rounds=1, progress=False
    )
    assert [point.name for point in two.points] == ["float", "8 bits", "8 bits (2)"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"evaluate": 3}, TypeError, "evaluate must be a callable .* got 3"),
        ({"grids": "cubic"}, ValueError, "grids must be among linear, .* got 'cubic'"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"bits": ()}, ValueError, "must name a setting, got none"),
        ({"data": None}, ValueError, "inputs must be a batch .* got None"),
    ],
)
def test_messages(options, error, text):
    given = {"data": X, "evaluate": score, "progress": False} | options
    with pytest.raises(error, match=text):
        octavo.pareto_front(model(), **given)
