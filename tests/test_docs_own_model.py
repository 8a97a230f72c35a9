"""The examples of docs/own_model.md run as they stand: they learn, save and load."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "own_model.md").read_text("utf-8")
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", section, flags=re.S)
    for title, section in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, flags=re.S | re.M)
}
EXAMPLES = {title: blocks for title, blocks in SECTIONS.items() if blocks}
MARKS = dict.fromkeys(list(EXAMPLES)[1:], pytest.mark.nightly)


# CI runs the first one; the tests of integrations/ try what the others show.
@pytest.mark.slow
@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=MARKS.get(title, ())) for title in EXAMPLES]
)
def test_the_example_runs(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it saves
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in EXAMPLES[title]:
            exec(block, names)
    if "losses" in names:
        assert names["losses"][-1] < names["losses"][0]
        assert list(tmp_path.rglob("_CHECKPOINT_METADATA"))
    if "other" in names:
        for saved, loaded in (("model", "other"), ("optimizer", "its_optimizer")):
            states = nnx.state(names[saved]), nnx.state(names[loaded])
            jax.tree.map(np.testing.assert_array_equal, *states)
    if "y" in names:
        assert names["y"].shape == (4, 32)


def test_there_is_one_for_every_kind_of_model():
    assert list(EXAMPLES) == ["Flax NNX", "Flax linen", "Plain functions"]
