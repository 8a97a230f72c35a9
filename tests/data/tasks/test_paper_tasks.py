"""The paper's image sets and GLUE as tasks: classes, splits, sources, and rows that do not fit."""

import importlib
import json
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from goat_jax.data.pipeline.images import load_images
from goat_jax.data.pipeline.overlap import mark_of, note_of
from goat_jax.data.sources.read import read_image_source, read_source
from goat_jax.data.tasks.benchmarks.glue import GLUE
from goat_jax.data.tasks.benchmarks.vision import VISION, vision_classes
from goat_jax.data.tasks.text import load_examples
from goat_jax.errors import UserError
from kinds import image_task, text_task, write_npz

BUILDERS = {"cars": "cars196", "svhn": "svhn_cropped", "sun397": "sun397/standard-part1-120k"}


@pytest.mark.parametrize("name", [name for name in VISION if name != "gtsrb"])
def test_classes_are_those_of_tfds_in_their_order(name, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder(BUILDERS.get(name, name), data_dir=str(tmp_path))
    written, words = vision_classes(name)
    assert list(written) == builder.info.features["label"].names
    assert len(set(words)) == len(words)


def test_numbers_of_classes():
    counts = {name: len(vision_classes(name)[0]) for name in VISION}
    assert counts == {"cars": 196, "dtd": 47, "eurosat": 10, "gtsrb": 43, "resisc45": 45,
                      "sun397": 397, "svhn": 10}  # fmt: skip


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_a_local_folder_goes_first(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        picture(tmp_path / "eurosat" / split / "SeaLake" / "a.png", seed)  # as the archive writes
        picture(tmp_path / "eurosat" / split / "annual crop land" / "b.png", seed + 5)  # in words
    task = image_task("eurosat", folder=tmp_path, image_size=8)
    assert load_images(task, "train").labels.tolist() == [9, 0]
    assert task.labels[9] == "sea or lake" and task.written[9] == "SeaLake"


def test_a_split_that_is_missing_is_named(tmp_path):
    picture(tmp_path / "train" / "banded" / "a.png")
    with pytest.raises(UserError, match=r"has no test split: give test/CLASS/image files"):
        image_task("dtd", folder=tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        image_task("dtd", folder="nowhere")
    (tmp_path / "mnli").mkdir()
    (tmp_path / "mnli" / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match="no file validation_matched"):
        text_task("mnli", folder=tmp_path)


def test_a_set_that_is_not_made_names_the_verb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"goat-jax data prepare makes .*; hf:tanganke/dtd needs"):
        load_images(image_task("dtd", data_dir=str(tmp_path)), "train")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing was fetched


def test_a_class_that_the_set_does_not_have_is_named(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "plaid" / "a.png")
    with pytest.raises(UserError) as told:
        load_images(image_task("dtd", folder=tmp_path), "train")
    assert "row 1: label 'plaid': expected banded, blotchy, braided, ..., zigzagged" in str(
        told.value
    )
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def glue_folder(root, name, train, held_out):
    (root / name).mkdir()
    for split, rows in (("train", train), *((s, held_out) for s in GLUE[name].evaluation)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / name / f"{split}.jsonl").write_text(text)
    return text_task(name, folder=root)


def nli(number, label: int | str = 0):
    return {"premise": f"A {number}.", "hypothesis": "B.", "label": label}


def test_mnli_keeps_its_two_parts_apart(tmp_path):
    task = glue_folder(tmp_path, "mnli", [nli(0)], [nli(1), nli(2, "contradiction")])
    rows = load_examples(task, "evaluation")
    assert rows.labels.tolist() == [0, 2, 0, 2]
    assert {name: part.tolist() for name, part in rows.parts.items()} == {
        "matched": [1, 1, 0, 0], "mismatched": [0, 0, 1, 1]
    }  # fmt: skip
    assert load_examples(task, "train").parts == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"premise": "A.", "label": 0}, r"row 2: no value in column 'hypothesis'"),
        ({"premise": "A.", "hypothesis": "B."}, r"row 2: no value in column 'label'"),
        ({"premise": "A.", "hypothesis": "B.", "label": 3}, r"row 2: label 3: expected entailment"),
        ({"premise": "A.", "hypothesis": "B.", "label": -1}, r"row 2: label -1: expected"),
        ({"premise": "A.", "hypothesis": 4, "label": 1}, r"column 'hypothesis' holds 4, not text"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, row, message):
    task = glue_folder(tmp_path, "mnli", [nli(0), row], [nli(1)])
    with pytest.raises(UserError, match=message) as told:
        load_examples(task, "train")
    assert "\n" not in str(told.value)


def test_rows_of_both_splits_are_found(tmp_path):
    task = glue_folder(tmp_path, "mnli", [nli(0), nli(1)], [nli(1), nli(2)])
    train, held_out = load_examples(task, "train"), load_examples(task, "evaluation")
    assert note_of(train.marks, held_out.marks) == (
        "2 of 4 held-out rows are also in the training rows"
    )


def test_images_of_both_splits_are_found_by_content_and_by_id(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        picture(tmp_path / split / "banded" / "a.png", seed)
        picture(tmp_path / split / "dotted" / f"{split}.png", seed=7)  # the same under two names
    task = image_task("dtd", folder=tmp_path)
    marks = [load_images(task, split).marks for split in ("train", "evaluation")]
    assert note_of(*marks) == "1 of 2 held-out rows is also in the training rows"
    rows = [{"image": np.full((4, 4), n, np.uint8), "label": 0, "name": f"n{n}"} for n in range(3)]
    for split, chosen in (("train", rows[:2]), ("test", [rows[2] | {"name": "n1"}])):
        columns = {key: np.array([row[key] for row in chosen]) for key in rows[0]}
        write_npz(tmp_path / f"{split}.npz", columns)
    options = dict(train="train.npz", evaluation="test.npz", labels=("a", "b"))
    task = image_task("image_files", **options, data_dir=str(tmp_path))
    by_id = importlib.import_module("dataclasses").replace(task, id="name")
    for each, expected in ((task, ""), (by_id, "1 of 1 held-out rows is")):
        marks = [load_images(each, split).marks for split in ("train", "evaluation")]
        assert note_of(*marks).startswith(expected) and bool(note_of(*marks)) == bool(expected)
    with pytest.raises(UserError, match="no value in column 'number'"):
        load_images(importlib.import_module("dataclasses").replace(task, id="number"), "train")


def test_marks_tell_kinds_of_values_apart():
    arrays = [np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((2, 3)) + 1]
    values = [*arrays, b"", b"a", "a", ("a",), ("a", "b"), ("ab",)]
    assert len({mark_of(value) for value in values}) == len(values)


class FakeHub(ModuleType):
    """The part of the package datasets that reads a repository."""

    class Image:
        def __init__(self, decode=True):
            self.decode = decode

    class Rows(list):
        def __init__(self, rows, features):
            super().__init__(rows)
            self.features = features

        def cast_column(self, column, feature):
            assert feature.decode is False
            return self

    def load_dataset(self, name, config, split):
        self.asked = (name, config, split)
        if name != "owner/set":
            raise FileNotFoundError(f"{name} is not on the hub\nsecond line")
        path = {"bytes": b"png", "path": None}
        return self.Rows([{"image": path, "label": 1}], {"image": self.Image(), "label": object()})


@pytest.fixture
def hub(monkeypatch):
    own = FakeHub("datasets")
    monkeypatch.setitem(sys.modules, "datasets", own)
    return own


def test_rows_of_the_hub(hub):
    rows = read_image_source("hf:owner/set/plain@test", "train", "image")
    assert hub.asked == ("owner/set", "plain", "test")
    assert rows[0] == {"image": b"png", "label": 1} and len(rows) == 1
    read_source("hf:owner/set", "train")
    assert hub.asked == ("owner/set", None, "train")
    with pytest.raises(UserError, match=r"^hf:owner/other@train: owner/other is not on the hub$"):
        read_source("hf:owner/other", "train")


def test_sources_are_tried_in_their_order(hub, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"label": 1}')
    first = f"{tmp_path}/a.jsonl || hf:owner/set@train"
    assert read_source(first, "train") == [{"label": 1}]
    assert not hasattr(hub, "asked")
    second = f"{tmp_path}/b.jsonl || hf:owner/set@train"
    assert read_source(second, "train")[0]["label"] == 1
    with pytest.raises(UserError, match=r"b.jsonl: no such file; hf:owner/no@train: owner/no"):
        read_source(f"{tmp_path}/b.jsonl || hf:owner/no", "train")
