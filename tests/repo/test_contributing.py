"""CONTRIBUTING.md is short, and names only what there is."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
PLACES = (ROOT, ROOT / "csrc", ROOT / "python" / "octavo")


def test_it_is_short() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_path_exists() -> None:
    checked = 0
    for written in re.findall(r"`([^`\s]+)`", PAGE.read_text(encoding="utf-8")):
        place = written.split("<")[0].rpartition("/")[0] + "/" if "<" in written else written
        if place.startswith(("python/octavo/export/", "build", "shared/", "/")):
            continue  # No exporter is there yet; the others are no part of the repository.
        if not re.fullmatch(r"[a-z.][\w.]*/[\w./]*|[\w.]+\.(md|txt|py|cpp|json)", place):
            continue
        checked += 1
        assert any((parent / place).exists() for parent in PLACES), f"CONTRIBUTING.md: {place}"
    assert checked >= 25


def test_every_package_has_a_floor() -> None:
    block = next(
        b for b in re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if "<" in b
    )
    written = {word.split("/")[0] for word in re.findall(r"[\w/]+", block)} - {"export"}
    package = ROOT / "python" / "octavo"
    there = {
        path.stem
        for path in package.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists())
        and not path.name.startswith("__")
    }
    assert written == there - {"demo"}


def test_every_variable_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(OCTAVO_\w+)`", text))
    read: set[str] = set()
    for folder, suffix in (
        (ROOT / "python", "*.py"),
        (ROOT / "tests", "*.py"),
        (ROOT / ".ci", "*"),
    ):
        for path in folder.rglob(suffix):
            if path.is_file() and os.access(path, os.R_OK):
                content = path.read_text(encoding="utf-8")
                read |= set(re.findall(r'environ(?:\.get\(|\[)"(OCTAVO_\w+)"', content))
    assert read - {"OCTAVO_FUZZ_LAST"} <= named  # From a test to its own child.
    assert {"OCTAVO_SUITE", "OCTAVO_SEED", "OCTAVO_BUILD"} <= read
