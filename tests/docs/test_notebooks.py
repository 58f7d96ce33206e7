"""The notebooks run from their first cell to their last, and what they hold is what they print.

`.venv/bin/python tests/docs/test_notebooks.py` runs them and keeps the outputs.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra [docs]")
nbclient = pytest.importorskip("nbclient", reason="needs the extra [docs]")
jupyter_client = pytest.importorskip("jupyter_client", reason="needs the extra [docs]")
pytest.importorskip("ipykernel", reason="needs the extra [docs]")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
NEEDS = {"cell-painting": "copairs"}
"""Packages of extras without which a notebook cannot be run."""
EVERY = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)


def executed(notebook: Path, folder: Path) -> Any:
    """The notebook with its outputs, run in `folder`, where its files stay."""
    read = nbformat.read(notebook, as_version=4)
    # Sockets in a folder, whose path has to be short, and no ports that another test may take.
    with tempfile.TemporaryDirectory(prefix="nb") as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", home)
        patch.setenv("IPYTHONDIR", home)
        manager = jupyter_client.AsyncKernelManager(
            kernel_name="python3", transport="ipc", ip=str(Path(home, "kernel"))
        )
        client = nbclient.NotebookClient(
            read,
            km=manager,
            timeout=600,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
        )
        client.execute(cleanup_kc=True)
    return read


def text_of(output: Any) -> str:
    """What an output says: its text, or that of its data."""
    return str(output.get("text", output.get("data", {}).get("text/plain", "")))


@EVERY
def test_notebook_runs_and_prints_what_it_holds(notebook: Path, tmp_path: Path) -> None:
    if notebook.stem in NEEDS:
        pytest.importorskip(NEEDS[notebook.stem], reason="needs an extra")
    held = nbformat.read(notebook, as_version=4)
    for before, after in zip(held.cells, executed(notebook, tmp_path).cells, strict=True):
        kinds = [output.output_type for output in after.get("outputs", [])]
        assert kinds == [output.output_type for output in before.get("outputs", [])], after.source
        assert "error" not in kinds
        assert all(output.get("name") != "stderr" for output in after.get("outputs", []))


@EVERY
def test_a_notebook_is_small(notebook: Path) -> None:
    assert notebook.stat().st_size < 150_000


def test_a_notebook_that_fails_is_told(tmp_path: Path) -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="1 == 2"):
        executed(tmp_path / "broken.ipynb", tmp_path)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as made_in:
            nbformat.write(executed(path, Path(made_in)), path)
