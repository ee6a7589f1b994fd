"""The examples in docstrings run, and give what stands below them."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent / "python"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "octavo").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


class Finder(doctest.DocTestFinder):
    """Finds functions behind their decorators too."""

    def _from_module(self, module: ModuleType | None, object: object) -> bool:
        return super()._from_module(module, inspect.unwrap(object))  # type: ignore[misc,arg-type]


def test_there_are_examples() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "octavo").rglob("*.py"))
    assert len(MODULES) > 10 and text.count("# doctest: +SKIP") <= 1


@pytest.mark.build
@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    found = [test for test in Finder(exclude_empty=True).find(module, name) if test.examples]
    written = Path(str(module.__file__)).read_text(encoding="utf-8").count(">>> ")
    assert sum(len(test.examples) for test in found) == written
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out
