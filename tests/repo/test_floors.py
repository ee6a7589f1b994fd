"""The floors of the package: a module imports what lies below it or beside it, never above, and no cycle exists.

Imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[2] / "python"

# Lowest first. A row is a package with all that is in it, or one module. CONTRIBUTING.md shows the same.
FLOORS = (
    ("errors", "interrupts", "signature", "files"),
    ("numerics",),
    ("ops", "library"),
    ("nn", "data"),
    ("graph", "checks.model"),
    ("planning", "runtime"),
    ("prepare", "rounding", "lowering"),
    ("types",),
    ("plot", "checks.arguments"),
    ("reporting",),
    ("deciding", "training"),
    ("api", "checkpoint", "export"),
    ("advice",),
    ("cli", "demo", "__main__"),
)
TOP_MODULES = 10

#: (importer, imported): why a type is named that lies above.
UPWARDS_FOR_TYPES = {
    ("plot.pareto", "advice.pareto"): "a picture of a Front is one of its methods",
    ("plot.report", "reporting.report"): "a picture of a Report is one of its methods",
}


def module_name(path: Path) -> str:
    """Dotted, without "octavo."; a package is its __init__, octavo itself is ""."""
    parts = path.relative_to(PYTHON / "octavo").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((PYTHON / "octavo").rglob("*.py"))}


def _named(module: str, name: str) -> str | None:
    """The module of octavo that ``from module import name`` reads."""
    if module != "octavo" and not module.startswith("octavo."):
        return None
    inner = module.removeprefix("octavo").removeprefix(".")
    within = f"{inner}.{name}".removeprefix(".")
    if within == "_C":
        return None  # The compiled module imports nothing.
    return within if within in MODULES else inner


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(imported module, whether for types alone) of every import of octavo at any depth."""

    def walk(node: ast.AST, types: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            types = True
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                target = _named(node.module or "", alias.name)
                if target is not None:
                    yield target, types
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "octavo":
                    yield alias.name.removeprefix("octavo").removeprefix("."), types
        for child in ast.iter_child_nodes(node):
            yield from walk(child, types)

    return walk(ast.parse(source), False)


def floor_of(module: str) -> int:
    """Index of the row of a module or of the packages that it is in."""
    for number, row in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in row):
            return number
    raise AssertionError(f"octavo.{module}: expected a floor, got none. Add it to FLOORS.")


GRAPH = {
    name: {target: types for target, types in sorted(imports(path.read_text()), reverse=True)}
    for name, path in MODULES.items()
}


def inner_modules() -> list[str]:
    """All but octavo itself, and but for packages that only hold modules of several floors."""
    return [name for name in MODULES if name and not (name == "checks" and not GRAPH[name])]


@pytest.mark.parametrize("name", inner_modules())
def test_modules_import_nothing_from_above(name: str) -> None:
    for target, types in GRAPH[name].items():
        if not target:
            assert floor_of(name) == len(FLOORS) - 1, f"octavo.{name} imports octavo itself"
        elif floor_of(target) > floor_of(name):
            assert types and (name, target) in UPWARDS_FOR_TYPES, (
                f"octavo.{name} imports octavo.{target}, which lies above it"
            )


def test_no_cycles() -> None:
    """Types that are named upwards, with a reason, do not count."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for target in GRAPH[name]:
            if (name, target) not in UPWARDS_FOR_TYPES:
                visit(target, (*path, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())
    assert done == set(MODULES)


def test_reasons_are_needed() -> None:
    for (name, target), reason in UPWARDS_FOR_TYPES.items():
        assert reason and GRAPH[name].get(target) is True, f"{name} no longer names {target}"


def test_rules_see_imports_at_any_depth() -> None:
    source = (
        "from octavo import errors\ndef f():\n    if TYPE_CHECKING:\n        import octavo.api\n"
    )
    assert dict(imports(source)) == {"errors": False, "api": True}
    assert dict(imports("from octavo.numerics import grids\nfrom octavo import _C")) == {
        "numerics.grids": False
    }
    assert floor_of("checks.model") < floor_of("checks.arguments")
    with pytest.raises(AssertionError, match="expected a floor"):
        floor_of("somewhere")


def test_contributing_shows_these_floors() -> None:
    text = (PYTHON.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```\n(.*?)```", text, re.S) if "errors," in b)
    rows = [tuple(name.strip() for name in row.split(",")) for row in block.split("<")]
    here = [
        tuple(n.replace(".", "/") for n in row if n not in ("demo", "__main__")) for row in FLOORS
    ]
    assert rows == here


def test_few_modules_at_the_top() -> None:
    top = sorted(path.name for path in (PYTHON / "octavo").glob("*.py"))
    assert len(top) <= TOP_MODULES, top


def test_no_order_of_imports_is_frozen() -> None:
    this = Path(__file__).resolve()
    for folder in ("python", "tests", "examples", "benchmarks"):
        for path in (PYTHON.parent / folder).rglob("*.py"):
            assert path == this or "isort: skip" not in path.read_text(), path


_EACH_FIRST = """
import importlib, os, sys, types
import torch, torch.utils.flop_counter
failed = False
for name in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        package = types.ModuleType("octavo")
        package.__path__ = [sys.argv[1]]
        sys.modules["octavo"] = package
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""


@pytest.mark.build
def test_each_module_can_be_the_first() -> None:
    """In a fresh process, with an empty octavo/__init__: no module relies on what others imported."""
    names = [f"octavo.{name}" for name in MODULES if name not in ("", "__main__")]  # The last runs.
    assert len(names) > 40
    import octavo  # Here, since the other rules are checked without a build.

    package = Path(octavo.__file__).parent  # Installed or in the tree: where the library stands.
    done = subprocess.run(
        [sys.executable, "-c", _EACH_FIRST, str(package), *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
