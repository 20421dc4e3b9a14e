"""The notebook of the documentation shows one run of itself, and still runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def kinds(cell):
    """What its outputs show: streams of text, or data of some types."""
    return [
        sorted(output.get("data", {})) or output["output_type"]
        for output in cell["outputs"]
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    shown = [kind for cell in cells for kind in kinds(cell)]
    assert "error" not in shown
    assert sum("image/png" in kind for kind in shown) >= 3


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to=notebook", "--execute"]
        + [f"--output-dir={tmp_path}", path.name],
        cwd=DOCS,
        check=True,
    )
    again = tmp_path / path.name
    before, after = ([kinds(c) for c in code_cells(x)] for x in (path, again))
    assert after == before


def test_there_is_one():
    assert NOTEBOOKS
