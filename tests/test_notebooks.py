"""The notebooks run from the first cell to the last; they are kept as text (jupytext) and executed here."""

from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
NEEDED = {"1": ["timm"], "2": ["timm", "accelerate", "evaluate"], "3": ["timm", "onnxruntime", "onnxscript"], "4": []}


@pytest.mark.nightly
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file, tmp_path, monkeypatch):
    for package in ("jupytext", "nbclient", "ipykernel", *NEEDED[file.stem[0]]):
        pytest.importorskip(package)
    import jupytext
    from nbclient import NotebookClient

    (tmp_path / "notebooks").mkdir()
    for folder in ("checkpoints", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = jupytext.read(file)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path / "notebooks")}})
    client.execute()


def test_every_notebook_is_listed_with_what_it_needs():
    assert {file.stem[0] for file in NOTEBOOKS} == NEEDED.keys()
