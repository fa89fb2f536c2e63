"""The notebooks run and are committed with their outputs: `python -m tests.test_notebooks` runs them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
#: The one that runs always; the sweep has all.
ALWAYS = "quick_start"
#: In a process of its own, whose warnings are Jupyter's.
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=3600).execute()
nbformat.write(notebook, sys.argv[2])
"""


def execute(path, environment):
    """Runs a notebook and returns it with its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", EXECUTE, str(path), f"{folder}/made.ipynb"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return clean(nbformat.read(f"{folder}/made.ipynb", 4))


def clean(notebook):
    """Removes execution times and the logs of libraries."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [made for made in cell.outputs if made.get("name") != "stderr"]
    return notebook


def shown(notebook):
    """Returns of each cell of code its number and the kinds of its outputs."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(c.execution_count, {kind for made in c.outputs for kind in made.get("data", ["text"])}) for c in cells]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.sweep] * (path.stem != ALWAYS), id=path.stem) for path in NOTEBOOKS],
)
def test_notebooks_run_and_show_what_was_committed(path):
    committed, executed = nbformat.read(path, 4), execute(path, {"KERAS_RESDENSE_QUICK": "1"})
    nbformat.validate(committed)
    assert shown(committed) == shown(executed)
    assert committed == clean(nbformat.read(path, 4))
    assert [number for number, _ in shown(committed)] == list(range(1, len(shown(committed)) + 1))
    assert sum("image/png" in kinds for _, kinds in shown(executed)) >= 2


if __name__ == "__main__":
    for found in map(Path, sys.argv[1:] or NOTEBOOKS):
        nbformat.write(execute(found, {}), found)
