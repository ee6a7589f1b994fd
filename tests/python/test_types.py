"""Types of public arguments: each list of words is that of the table which gives the words their meaning."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

import octavo
from octavo import types
from octavo.advice.advise import TARGETS
from octavo.nn.fake_quantize import METHODS as QAT_METHODS
from octavo.numerics.ranges import RULES
from octavo.rounding import METHODS

WORDS: dict[str, tuple[Any, Any]] = {
    "grid": (types.Grid, octavo.grids()),
    "rounding": (types.Rounding, METHODS),
    "ranges": (types.Ranges, RULES),
    "qat_method": (types.QatMethod, QAT_METHODS),
    "target": (types.TargetName, TARGETS),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_are_those_of_the_table(name: str) -> None:
    alias, table = WORDS[name]
    assert sorted(get_args(alias)) == sorted(table)


@pytest.mark.parametrize("effort", get_args(types.Effort))
def test_every_effort_is_accepted(effort: types.Effort) -> None:
    import torch

    octavo.quantize(torch.nn.Linear(64, 8), 4, effort=effort, progress=False)


@pytest.mark.parametrize(
    "name", ["quantize", "dequantize", "freeze", "save", "load", "report", "verify", "advise"]
)
def test_hints_can_be_read_at_run_time(name: str) -> None:
    hints = get_type_hints(getattr(octavo, name))
    assert "return" in hints
    written = {k for k, v in hints.items() if v is Any or v is object}
    assert not written, written
