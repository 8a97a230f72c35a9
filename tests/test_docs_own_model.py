"""The examples of docs/own_model.md run as they stand and learn something."""

import re
from pathlib import Path

import jax
import pytest

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "own_model.md").read_text("utf-8")
BLOCKS = re.findall(r"## ([^\n]+)\n[^#]*?```python\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title, _ in BLOCKS])
def test_the_example_runs(title):
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(dict(BLOCKS)[title], names)
    assert names.keys() & {"losses", "y"}
    if "losses" in names:
        assert names["losses"][-1] < names["losses"][0]
    if "y" in names:
        assert names["y"].shape == (4, 32)


def test_there_is_one_for_every_kind_of_model():
    assert [title for title, _ in BLOCKS] == ["Flax NNX", "Flax linen", "Plain functions"]
