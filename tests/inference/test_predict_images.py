"""A run on a folder of photos, from the folder to predictions of other photos."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import goat_jax
from goat_jax.cli.main import main
from goat_jax.data.sources.read import read_rows
from tiny_images import COLORS, photo, write_photos, write_vit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """A run trained on photos/CLASS/SUB/NUMBER.png, by the names of model and folder alone."""
    root = tmp_path_factory.mktemp("photos")
    fields = {"adapter.target_modules": ("q_proj",), "optimizer.learning_rate": 1e-2}
    return goat_jax.train(
        str(write_vit(root / "vit")),
        write_photos(root / "photos", 10),
        progress=False,
        **{"train.steps": 30, "out": str(root / "run")} | fields,
    )


def test_the_classes_are_learned(summary):
    assert summary.after["accuracy"] == 1.0
    assert goat_jax.load(summary.folder).config.task.labels == COLORS


def test_nested_folders_stored_images_and_python_agree(summary, tmp_path):
    write_photos(tmp_path / "new", 4)
    words = ["predict", str(summary.folder), "--quiet"]
    out = tmp_path / "found.csv"
    assert main([*words, "--data", str(tmp_path / "new"), "--out", str(out)]) == 0
    rows = read_rows(out)
    expected = [row["image"].split("/")[-3] for row in rows]
    assert [row["prediction"] for row in rows] == expected and len(rows) == 12

    stored = [{"number": n, "image": {"bytes": photo(COLORS[n], n)}} for n in range(3)]
    table = tmp_path / "new.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), table)
    out = tmp_path / "found.jsonl"
    assert main([*words, "--data", str(table), "--out", str(out)]) == 0
    rows = read_rows(out)
    assert [(row["number"], row["prediction"]) for row in rows] == [*enumerate(COLORS)]
    assert "image" not in rows[0]  # bytes are not written

    found = goat_jax.load(summary.folder).predict(
        [photo(color, n) for n, color in enumerate(COLORS)]
    )
    assert found.labels.tolist() == list(COLORS)
    shares = [[row[f"probability_{name}"] for name in COLORS] for row in rows]
    np.testing.assert_allclose(shares, found.probabilities, rtol=1e-5, atol=1e-6)
