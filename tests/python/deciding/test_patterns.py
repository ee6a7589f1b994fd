"""patterns: which layers names, globs, classes, @first and @last mean."""

import pytest
import torch
from torch import nn

from octavo.deciding.patterns import resolve
from octavo.graph.capture import capture


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)  # Registered first, called last.
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x).mean((2, 3)))))


def widths(bits, exclude=(), include=None):
    model = Model().eval()
    sites = capture(model, ((torch.randn(2, 3, 5, 5),), {})).sites
    return resolve(bits, exclude, include, sites, model)


@pytest.mark.parametrize(
    "bits, expected",
    [
        (
            {"*": 8, "@first": 4, "@last": 2},
            {"stem": 4, "blocks.0": 8, "blocks.1": 8, "norm": 8, "head": 2},
        ),
        ({"blocks": 3}, {"blocks.0": 3, "blocks.1": 3}),
        ({"blocks.*": 3, "blocks.0": 5}, {"blocks.0": 5, "blocks.1": 3}),
        ({"blocks.0": 5, "blocks.*": 3}, {"blocks.0": 3, "blocks.1": 3}),
        ({nn.Linear: 6}, {"blocks.0": 6, "blocks.1": 6, "head": 6}),
    ],
    ids=["first and last called", "prefix", "later wins", "later wins again", "class"],
)
def test_widths(bits, expected):
    found, reasons, unmatched = widths(bits)
    assert found == expected and not unmatched
    assert set(reasons) == {"stem", "blocks.0", "blocks.1", "norm", "head"} - set(expected)


def test_exclude_and_only():
    found, reasons, _ = widths({"*": 8}, exclude=["blocks.0"], include=["blocks", nn.Conv2d])
    assert set(found) == {"stem", "blocks.1"}
    assert reasons["blocks.0"] == "excluded" and reasons["head"] == "not among include="


def test_what_matches_nothing_names_what_is_near():
    _, _, unmatched = widths({"*": 8, "block.0": 4})
    assert len(unmatched) == 1 and "got 'block.0'" in unmatched[0] and "'blocks.0'" in unmatched[0]


def test_other_patterns_are_refused():
    with pytest.raises(
        TypeError, match=r"exclude must hold names, globs or nn\.Module classes, got 3"
    ):
        widths({"*": 8}, exclude=[3])
