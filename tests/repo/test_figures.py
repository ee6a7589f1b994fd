"""Figures are kept once: the tables of README.md and of the benchmarks' README are those of figures.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
(SOURCE,) = (ROOT / "python" / "octavo").rglob("figures.json")
FIGURES: dict[str, dict[str, Any]] = json.loads(SOURCE.read_text(encoding="utf-8"))
README = ROOT / "README.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"


def printed(path: Path, columns: list[str]) -> list[list[list[str]]]:
    """Rows of every table with these columns; cells without emphasis, empty first ones as those above."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", path.read_text(encoding="utf-8"), re.M):
        lines = [
            [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]
            for line in block.splitlines()
        ]
        if lines[0] == columns:
            rows: list[list[str]] = []
            for cells in lines[2:]:
                rows.append([cells[0] or rows[-1][0], *cells[1:]])
            found.append(rows)
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_tables_are_those_of_the_data(name: str) -> None:
    table = FIGURES[name]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    found = [rows for path in (README, BENCHMARKS) for rows in printed(path, table["columns"])]
    assert table["rows"] in found, f"{name}: no table with these rows is printed"


def test_comparison_in_readme_is_that_of_the_benchmarks() -> None:
    name = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"}
    table = FIGURES["networks on Zen 5"]
    columns = ["octavo", "torch.ao x86", "onnxruntime int8", "OpenVINO int8"]
    places = [table["columns"].index(column) for column in columns]
    expected = [
        [re.sub(r"^\w+", lambda m: name[m[0]], row[0]), *(row[i] for i in places)]
        for row in table["rows"]
    ]
    heading = ["network, batch", "octavo", "torch.ao (x86)", "onnxruntime", "OpenVINO"]
    assert expected == printed(README, heading)[0]


@pytest.mark.build
def test_figures_that_advice_cites_are_printed() -> None:
    from octavo.advice.advise import RULES

    cited = 0
    for rule in RULES:
        where = re.match(r"(README|.*README\.md)[:,]", rule.source)
        if where is None:
            continue
        text = (README if where[1] == "README" else BENCHMARKS).read_text(encoding="utf-8")
        cells = set(re.findall(r"[\d.]*\d", text))
        for number in re.findall(
            r"\d+\.\d+|\b\d{2,}\b", rule.source.split(":", 1)[-1].split(";")[0]
        ):
            cited += 1
            assert number in cells, f"{rule.name}: {number} is not in {where[1]}"
    assert cited >= 10
