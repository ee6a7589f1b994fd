"""The README's Python runs as it stands there, block after block in one namespace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FULL

README = Path(__file__).resolve().parent.parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def test_there_are_blocks() -> None:
    found = blocks()
    assert len(found) >= 4
    assert all(
        any(call in block for block in found) for call in ("quantize", "advise", "freeze", "plot")
    )


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.build
def test_first_example_prints_what_follows_it(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    first = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", text, re.S)
    assert first is not None
    assert first[1] == blocks()[0]
    result = run(first[1], tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == first[2]


@pytest.mark.build
@pytest.mark.parametrize("section", ("choose", "all") if FULL else ("choose",))
def test_blocks_run(section: str, torchvision: object, tmp_path: Path) -> None:
    found = blocks()
    if section == "choose":  # The others take minutes.
        start = "import torch, torchvision, octavo\nmodel = torchvision.models.squeezenet1_1(weights=None).eval()\n"
        start += "model.fc = model.classifier[1]\n"
        found = [start, *(block for block in found if "advise" in block or "plot" in block)]
        assert len(found) == 3
        # Sensitivities of every layer take longest.
        found[2] = found[2].replace(
            "octavo.sensitivity(model, batches)", "octavo.sensitivity(model)"
        )
    result = run("\n".join(found), tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    if section == "choose":
        assert "octavo.quantize(model, " in result.stdout and "memory KiB" in result.stdout
        assert (tmp_path / "report.html").exists() and (tmp_path / "front.png").exists()
