"""Every notebook runs from top to bottom within its time."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SECONDS = 300
"""For one cell, on a busy machine; a whole notebook takes about a minute on two free cores."""


@pytest.fixture
def plain_environment(monkeypatch):
    """What a reader has: neither the tests' devices nor their compiler settings."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs(path, plain_environment):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    before = [printed(cell) for cell in notebook.cells]
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    after = [printed(cell) for cell in notebook.cells]
    assert list(map(bool, before)) == list(map(bool, after)), "its kept outputs are of other cells"


def printed(cell) -> bool:
    """Whether a cell has shown anything but warnings."""
    outputs = cell.get("outputs", [])
    return any(output.get("name") != "stderr" for output in outputs)
