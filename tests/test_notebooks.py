"""Every notebook runs from top to bottom within its time and shows what it has kept."""

import json
import os
from pathlib import Path

import pytest

from notebook_names import code_of, problems
from notebook_outputs import difference, shown

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SECONDS = 3600
"""Time limit of one cell, in seconds; a whole notebook takes about a minute on two free cores."""


@pytest.fixture
def plain_environment(monkeypatch):
    """Returns a reader's environment: neither the tests' devices nor their compiler settings."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.nightly  # `test_names_and_fields_exist` reads them in every tier
@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs(path, plain_environment):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kept = [shown(cell) for cell in notebook.cells]
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    stale = []
    for number, ((text, kinds), cell) in enumerate(zip(kept, notebook.cells, strict=True)):
        now, kinds_now = shown(cell)
        found = difference(text, now) if kinds == kinds_now else f"kept {kinds}, now {kinds_now}"
        if found is not None:
            stale.append(f"cell {number}: {found}")
    assert not stale, "run it again and keep the outputs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_and_fields_exist(path):
    """Returns the names that the cells take from the library, without running them."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [{**cell, "source": "".join(cell["source"])} for cell in cells]
    code = [code_of(cell) for cell in code if cell["cell_type"] == "code"]
    for number, text in enumerate(code):
        compile(text, f"{path.name}, code cell {number}", "exec")
    assert problems("\n".join(code)) == []


CONFIG = """from goat_jax.config.files import load_config
from goat_jax.config.run import RunConfig
config = load_config('a.py')
"""


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from goat_jax.config.ran import RunConfig", "no module goat_jax.config.ran"),
        ("from goat_jax.config.run import Runconfig", "goat_jax.config.run has no Runconfig"),
        ("import goat_jax\ngoat_jax.adapt_flax(3)", "goat_jax has no adapt_flax"),
        ("import goat_jax\ngoat_jax.METHODS['goad']", "there is no 'goad'"),
        ("import goat_jax\ngoat_jax.METHODS['goat'].sauce", "Method has no sauce"),
        (CONFIG + "config.train.step", "TrainConfig has no step"),
        (CONFIG + "RunConfig(modle=1)", "RunConfig: got an unexpected keyword argument 'modle'"),
        (CONFIG + "load_config(1, 2)", "load_config: too many positional arguments"),
        (
            CONFIG
            + "import dataclasses\n[dataclasses.replace(config.train, step=n) for n in (1, 2)]",
            "TrainConfig has no field step",
        ),
        (
            CONFIG + "import dataclasses\nother = dataclasses.replace(config, out='b')\nother.tain",
            "RunConfig has no tain",
        ),
        (CONFIG + "config = 3\nconfig.step", ""),
        (CONFIG + "[config.step for config in (1, 2)]", ""),
        (CONFIG + "def own(config):\n    return config.step", ""),
        (CONFIG + "config.train.steps", ""),
    ],
)
def test_names_that_do_not_exist_are_found(code, found):
    said = problems(code)
    assert found in said[-1] if found else said == []


@pytest.mark.parametrize(
    ("kept", "now", "found"),
    [
        ("loss 0.576\nrows 9,270\n", "loss   0.58\nrows 9,270", None),
        ("a  b\n-----  --\n1  2", "a b\n--- ---\n1 2", None),
        ("up to 1e-08", "up to 5e-08", None),
        ("up to 4e-07", "up to 0e+00", None),
        ("up to 0e+00", "up to 4e-07", None),
        ("7.30e+12 operations", "7.303e+12 operations", None),
        ("upright 95.2%", "upright 93.9%", None),
        ("loss 0.576", "loss 0.676", "kept '0.576', now '0.676'"),
        ("rows 9,270", "rows 9,271", "kept '9,270', now '9,271'"),
        ("up to 1e-08", "up to 1e-05", "kept '1e-08', now '1e-05'"),
        ("7.57e+12 operations", "7.30e+12 operations", "kept '7.57e+12', now '7.30e+12'"),
        ("all-gather 1443", "all-gather 1300", "kept '1443', now '1300'"),
        ("blocks.0.up\nblocks.0.key", "blocks.0.key\nblocks.0.up", "kept 'blocks."),
        ("one", "one two", "kept 'one', now 'one two'"),
        ("one 1", "one 1 and 2", "kept '', now 'and'"),
        ("x nan", "x 1.0", "kept 'x nan', now 'x'"),
    ],
)
def test_outputs_are_compared_by_text_and_numbers(kept, now, found):
    assert difference(kept, now) == found or (found and found in difference(kept, now))


def test_pieces_of_an_output_and_warnings_do_not_count():
    def stream(name, text):
        return {"output_type": "stream", "name": name, "text": text}

    cut = {"outputs": [stream("stdout", "a\n"), stream("stderr", "careful"), stream("stdout", "b")]}
    value = {"output_type": "execute_result", "data": {"text/plain": "c"}}
    drawn = {"text/plain": "<Figure size 600x300>", "image/png": "..."}
    picture = {"output_type": "execute_result", "data": drawn}
    assert shown(cut) == ("a\nb", [])
    assert shown({"outputs": [value, picture]}) == ("c\n", ["image/png"])
