"""Notebooks: those in the repository hold their results, and they run.

A notebook is stored executed. To execute it anew (bars as text, so that they show everywhere):

    PYTHONWARNINGS="ignore:IProgress not found" python tests/repo/test_notebooks.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with its results, run in a process of its own; an error in a cell is one here."""
    import nbclient

    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, 4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def text_of(notebook: Any) -> str:
    found = [
        str(o.get("text", "")) + str(o.get("data", {}).get("text/markdown", ""))
        for o in outputs(notebook)
    ]
    return "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_results_are_stored(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 3
    text = text_of(notebook)
    assert "Warning" not in text and "/tmp" not in text and "/work" not in text


@pytest.mark.build
@pytest.mark.filterwarnings("ignore")  # Of Jupyter's own packages.
def test_train_few_bits_runs(tmp_path: Path) -> None:
    """With two widths and fewer epochs: training in few bits must give no less than rounding alone."""
    notebook = read(EXAMPLES / "train_few_bits.ipynb")
    (place,) = (
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    notebook.cells[place].source = "WIDTHS, FLOAT_EPOCHS, EPOCHS = [8, 2], 12, 10"
    last = notebook.cells[-1]
    last.source += "\nimport json\nprint(json.dumps([float_accuracy, rows]))"
    text = text_of(executed(notebook, tmp_path))
    assert "promise of one step kept" in text and "same bits after loading: True" in text
    floats, (eight, two) = json.loads(text.strip().splitlines()[-1])
    print(floats, eight, two)
    assert floats >= 96
    assert eight["frozen"] >= floats - 1 and two["frozen"] >= 93
    assert two["frozen"] >= two["rounded"]
    assert two["frozen"] == pytest.approx(two["trained"], abs=0.5)
    assert two["bytes"] < 0.35 * eight["bytes"]


if __name__ == "__main__":
    import nbformat

    for found in sys.argv[1:] or map(str, NOTEBOOKS):
        done = executed(read(Path(found)), Path(found).resolve().parent)
        for cell in done.cells:
            cell.metadata.pop("execution", None)  # Times of this machine.
        nbformat.write(done, found)
