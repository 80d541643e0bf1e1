"""The notebooks in docs/notebooks/ run from top to bottom, and show one bar per piece of work."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_complete_and_name_no_folder_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "/home/" not in path.read_text("utf-8")
    assert "/work/" not in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("data", {}).get("text/plain", "") for output in outputs]
    bars = [text for text in texts if text.startswith("training ")]  # the table of metrics has "training" inside
    assert len(bars) == 2, "one bar per training, replaced in place"
    assert all("24/24" in bar and len(bar.splitlines()) == 1 for bar in bars)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert sum(len(output.get("text", "").splitlines()) for output in outputs) < 100
