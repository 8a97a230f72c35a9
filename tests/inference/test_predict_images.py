"""A run on a folder of photos, from the folder to predictions of other photos."""

from typing import Any

import numpy as np
import pytest

import goat_jax
from goat_jax.cli.main import main
from goat_jax.data.sources.read import read_rows
from goat_jax.data.tasks.image import ImageTask
from kinds import expect
from tiny_images import COLORS, write_photos, write_vit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """A run trained on photos/CLASS/SUB/NUMBER.png, by the names of model and folder alone."""
    root = tmp_path_factory.mktemp("photos")
    fields: dict[str, Any] = {
        "train.steps": 30,
        "out": str(root / "run"),
        "adapter.target_modules": ("q_proj",),
        "optimizer.learning_rate": 1e-2,
    }
    model, photos = write_vit(root / "vit"), write_photos(root / "photos", 10)
    return goat_jax.train(str(model), photos, progress=False, **fields)


def test_the_classes_are_learned(summary):
    assert summary.after["accuracy"] == 1.0
    task = expect(ImageTask, goat_jax.load(summary.folder).config.task)
    assert task.labels == COLORS


def test_photos_in_nested_folders_are_predicted_in_their_order(summary, tmp_path):
    write_photos(tmp_path / "new", 4)
    words = ["predict", str(summary.folder), "--quiet"]
    out = tmp_path / "found.csv"
    assert main([*words, "--data", str(tmp_path / "new"), "--out", str(out)]) == 0
    rows = read_rows(out)
    expected = [row["image"].split("/")[-3] for row in rows]
    assert [row["prediction"] for row in rows] == expected and len(rows) == 12


def test_images_are_left_out_of_the_file_and_named(summary, tmp_path, capsys):
    rows, out = tmp_path / "new.npz", tmp_path / "found.jsonl"
    np.savez(rows, image=np.zeros((2, 16, 16, 3), np.uint8), size=np.array([[3, 4], [5, 6]]))
    words = ["predict", str(summary.folder), "--quiet", "--data", str(rows), "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}: 2 rows, without the images of column image\n"
    assert [row["size"] for row in read_rows(out)] == [[3, 4], [5, 6]]
