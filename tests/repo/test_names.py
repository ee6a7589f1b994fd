"""Tests are named by what they say, not by the numbers of a list that nobody else has."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def test_no_test_is_named_by_a_number() -> None:
    checked = 0
    for path in TESTS.rglob("*.py"):
        for name in re.findall(r"^\s*def (test_\w+)", path.read_text(encoding="utf-8"), re.M):
            checked += 1
            assert not re.match(r"test_(rows?_\d|[a-z]\d+(_|$)|\d)", name), f"{path.name}: {name}"
    assert checked > 700


def test_no_case_is_named_by_a_number() -> None:
    for path in TESTS.rglob("*.py"):
        found = re.findall(r'(?:case|id)[=(]\s*f?"[A-Z]\d+ ', path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found}"
