"""Type checkers see the public calls as they are: a user's script passes, and each marked mistake is flagged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "tests" / "typing"
PASSES, FAILS = SCRIPTS / "user_script.py", SCRIPTS / "mistakes.py"


def run(*command: str) -> str:
    """What a checker says, with its own code on PATH; an error code is what mistakes give."""
    result = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "MYPYPATH": str(ROOT / "python"), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode in (0, 1), result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def mypy(_folder: Path) -> dict[str, set[int]]:
    config = ("--config-file", str(ROOT / "pyproject.toml"), "--strict")
    text = run("mypy", *config, "--no-pretty", str(PASSES), str(FAILS))
    found = re.findall(r"^(?:.*[/\\])?(\w+\.py):(\d+): error: ", text, re.M)
    return {
        path.name: {int(line) for name, line in found if name == path.name}
        for path in (PASSES, FAILS)
    }


def pyright(folder: Path) -> dict[str, set[int]]:
    for path in (PASSES, FAILS):
        shutil.copy(path, folder)
    config = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT / "python")]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    text = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(folder))
    report = json.loads(text)
    assert report["summary"]["filesAnalyzed"] == 2
    found: dict[str, set[int]] = {PASSES.name: set(), FAILS.name: set()}
    for item in report["generalDiagnostics"]:
        found[Path(item["file"]).name].add(item["range"]["start"]["line"] + 1)
    return found


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_script_passes_and_each_mistake_is_flagged(checker: object, tmp_path: Path) -> None:
    assert callable(checker)
    found = checker(tmp_path)
    lines = FAILS.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert len(marked) > 30
    assert found == {PASSES.name: set(), FAILS.name: marked}
