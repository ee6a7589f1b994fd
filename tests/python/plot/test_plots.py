"""plot: figures hold what they should, labels do not overlap, and a missing matplotlib is said."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

import octavo
from conftest import missing

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    ).eval()  # fmt: skip


@pytest.fixture(autouse=True)
def matplotlib():
    try:
        import matplotlib
    except ImportError:
        missing("matplotlib is not installed (pip install matplotlib)")
    return matplotlib


def drawn(figure):
    """The figure as a notebook shows it; its texts must not lie on one another."""
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.draw_without_rendering()
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [text.get_window_extent() for text in labels if text.get_text()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert axes.get_title(loc="left") or axes.get_xlabel() or axes.get_ylabel()
    return figure


def test_levels_of_every_grid():
    figure = drawn(octavo.plot.levels(model(), "0", grid=octavo.grids(), bits=4))
    assert [axes.get_title(loc="left").split(",")[0] for axes in figure.axes] == [*octavo.grids()]
    counts = [len({line.get_xdata()[0] for line in axes.lines}) for axes in figure.axes]
    assert counts == [16, 15, 15, 15, 16, 16]
    assert all("SQNR" in axes.get_title(loc="left") for axes in figure.axes)
    assert figure.get_suptitle() == "0: [96, 3, 3, 3]"


def test_levels_of_a_layer_a_weight_and_groups():
    drawn(octavo.plot.levels(model()[4], bits=2))
    figure = drawn(octavo.plot.levels(torch.randn(8, 64), bits=3, group_size=16))
    assert figure.axes[0].get_xlabel() == "weight / largest level of its group"
    assert len(figure.axes[0].lines) == 8


def test_levels_that_a_quantized_layer_has():
    small = octavo.quantize(model(), 3, grid="nf", progress=False)
    figure = drawn(octavo.plot.levels(small, "4"))
    assert "4: 3 bits, nf" in figure.axes[0].get_title(loc="left")
    (dots,) = figure.axes[0].lines
    assert sum(dots.get_ydata()) == pytest.approx(100) and 2 < len(dots.get_xdata()) <= 8


def test_sensitivity_report_and_front():
    found = octavo.sensitivity(model(), X, progress=False)
    figure = drawn(found.plot())
    assert len(figure.axes[0].lines) == 6 and len(figure.axes[1].patches) == 2
    assert "2 bits" in found._repr_html_()
    small = octavo.quantize(model(), 4, X, progress=False)
    figure = drawn(octavo.report(small).plot())
    assert len(figure.axes) == 2 and len(figure.axes[0].patches) == 4
    assert len(octavo.report(octavo.quantize(model(), 4, progress=False)).plot().axes) == 1
    front = octavo.pareto_front(
        model(), X, evaluate=lambda m: float(m(X).norm()), bits=(8, 4), rounds=1, progress=False
    )
    figure = drawn(front.plot())
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "memory, KiB", "file, KiB", "time of a batch of 16, ms",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((3,), {}, TypeError, "model must be an nn.Module or a weight, got 3"),
        (
            (model(), "9"),
            {},
            ValueError,
            "must be the name of a layer, got '9'. .* there are: 0, 4",
        ),
        ((model(),), {}, ValueError, "got Sequential. Name one of its layers: layer='0'"),
        ((model(), "1"), {}, ValueError, "layer '1' must be a layer with weights, got ReLU"),
        ((model(), "0"), {"grid": "cubic"}, ValueError, "grid must be one of .* got 'cubic'"),
        ((model(), "0"), {"bits": 9}, ValueError, "bits must lie in 2..8, got 9"),
        ((torch.ones(3),), {}, ValueError, r"got torch.float32 of shape \[3\]"),
    ],
)
def test_messages(arguments, options, error, text):
    with pytest.raises(error, match=text):
        octavo.plot.levels(*arguments, **options)


def test_a_missing_matplotlib_is_said_and_import_is_without_it():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "import torch, octavo\n"
        "try: octavo.plot.levels(torch.randn(4, 4))\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "matplotlib must be installed for plots" in result.stdout
    assert "pip install matplotlib" in result.stdout
    code = "import sys, octavo; print('matplotlib' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
