"""A kind of region step is known in one place: its row, which the design note and all others follow."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = ROOT / "python" / "octavo"
# The file alone: the package could not be imported before it is built.
ROWS = runpy.run_path(str(PYTHON / "ops" / "region_steps.py"))
STEPS, PLANNED = ROWS["STEPS"], ROWS["PLANNED"]
KINDS = frozenset(STEPS) | frozenset(PLANNED)

# Where kinds are named: the rows, what lowering fills panels with, and recognition, which says what
# a call of torch amounts to.
HOMES = frozenset(
    {
        "ops/region_steps.py",
        "lowering/lower.py",
        "graph/kinds.py",
        "graph/layouts.py",
        "graph/operator_kinds.py",
    }
)
# Words that mean other things elsewhere: a grid, an operator of the package, a tag in a file, a param.
COMMON = frozenset({"add", "flatten", "linear", "mul", "pad", "quantize", "slice", "table"})


def test_the_design_note_has_the_kinds_and_keys_of_the_rows() -> None:
    text = (ROOT / "csrc" / "README.md").read_text()
    table = text.partition("| kind | keys | meaning |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| ([^|]*?) \|", table, re.M)
    written = {kind: keys for kind, keys in rows if kind != "out"}
    assert written == {kind: row.keys for kind, row in STEPS.items()}
    assert list(written) == list(STEPS)


def _mentions_kind(node: ast.AST) -> bool:
    """Whether an expression is the kind of something, or made from one."""
    return any(
        (isinstance(part, ast.Attribute) and part.attr == "kind")
        or (isinstance(part, ast.Name) and part.id == "kind")
        for part in ast.walk(node)
    )


def _texts(node: ast.AST) -> list[str]:
    constants = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return [part.value for part in constants if isinstance(part.value, str)]


def named(source: str) -> list[str]:
    """Places of a module that know kinds of steps by their names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Constant) and node.value in KINDS - COMMON:
            found.append(f"{where}{node.value!r}")
        if isinstance(node, (ast.Set, ast.Tuple, ast.List)) and len(node.elts) > 1:
            texts = [e.value if isinstance(e, ast.Constant) else None for e in node.elts]
            if KINDS.issuperset(texts):
                found.append(f"{where}{texts}")
        if isinstance(node, ast.Compare) and _mentions_kind(node):
            found += [f"{where}compared with {text!r}" for text in _texts(node) if text in KINDS]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            cuts = ("startswith", "endswith", "removesuffix", "removeprefix", "split", "partition")
            if node.func.attr in cuts and _mentions_kind(node.func.value):
                found.append(f"{where}cuts a kind: {ast.unparse(node)}")
    return found


def test_no_module_names_kinds_outside_their_homes() -> None:
    count = 0
    for path in sorted(PYTHON.rglob("*.py")):
        name = path.relative_to(PYTHON).as_posix()
        if name not in HOMES:
            count += 1
            assert named(path.read_text()) == [], name
    assert count > 100
    assert all((PYTHON / name).exists() for name in HOMES)


def test_what_counts_as_naming_a_kind() -> None:
    assert named('x = "max_pool"') and named('f("conv_f32")')
    assert named('A = frozenset({"add", "mul"})') and named('A = ("slice", "pad", "table")')
    assert named('if step.kind == "add": pass') and named('if kind in ("mul", "other"): pass')
    assert named('step.kind.split("_")[0]') and named('line.kind.startswith(("a", "b"))')
    assert not named('grid = "linear"') and not named('if step.kind == "float": pass')
    assert not named('"""Adds."""\nif PLANNED[step.kind].is_sum: pass')
