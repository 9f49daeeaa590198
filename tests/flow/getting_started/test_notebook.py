"""The quickstart notebook, run from its first cell to its last."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.helpers.processes.launching import ROOT, environment

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the kernel's own libraries
]

NOTEBOOK = ROOT / "launch" / "notebooks" / "quickstart.ipynb"


def test_notebook_is_short_and_stores_no_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert len(cells) <= 12
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


def test_notebook_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in environment({"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "Train: 48 utterances" in told
    assert 'gate = "any-dimension"' in told
    assert '"valence": ' in told
    assert (next(tmp_path.glob("tmp*")) / "runs" / "student" / "best" / "model.json").is_file()
