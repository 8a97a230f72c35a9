"""Tasks and their examples: labels by name or id, and every bad row named."""

import gzip
import json

import numpy as np
import pytest

from goat_jax.data.tasks.registry import TASKS, TextTask, files, load_examples, make_task
from goat_jax.errors import UserError
from kinds import text_task

TONE = ("negative", "positive")


def write(folder, rows, name="a.jsonl"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


def tone(folder, rows, **options):
    path = write(folder, rows)
    return files(path, path, **{"labels": TONE, **options})


def test_labels_by_name_by_id_and_from_text(tmp_path):
    values = ["positive", "negative", 1, 0, "1", "0", 1.0, True]
    task = tone(tmp_path, [{"sentence": "x", "label": value} for value in values])
    labels = load_examples(task, "train").labels
    assert labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 1] and labels.dtype == np.int32


def test_names_win_over_ids(tmp_path):
    task = tone(tmp_path, [{"sentence": "x", "label": 2}], labels=("1", "2", "3"))
    assert load_examples(task, "train").labels.tolist() == [1]


def test_regression_labels_are_floats(tmp_path):
    rows = [{"sentence": "x", "label": 2.5}, {"sentence": "y", "label": "4"}]
    task = tone(tmp_path, rows, labels=(), metrics=("pearson",))
    labels = load_examples(task, "evaluation").labels
    assert labels.tolist() == [2.5, 4.0] and labels.dtype == np.float32


def test_pairs(tmp_path):
    rows = [{"a": "one", "b": "two", "label": 0}, {"a": "", "b": "four", "label": 1}]
    examples = load_examples(tone(tmp_path, rows, text=("a", "b")), "train")
    assert examples.texts == (("one", ""), ("two", "four")) and len(examples) == 2


def test_limits_are_spread_over_a_sorted_file(tmp_path):
    rows = [{"sentence": str(i), "label": int(i >= 5)} for i in range(10)]
    task = tone(tmp_path, rows, train_limit=4, evaluation_limit=99)
    assert load_examples(task, "train").texts == (("0", "2", "5", "7"),)
    assert len(load_examples(task, "evaluation")) == 10


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "x"}, r"row 2: no value in column 'label' \(the row has sentence\)"),
        ({"sentence": "x", "label": None}, "row 2: no value in column 'label'"),
        ({"label": 1}, "row 2: no value in column 'sentence'"),
        ({"sentence": " ", "label": 1}, "row 2: empty text"),
        ({"sentence": 5, "label": 1}, "row 2: column 'sentence' holds 5, not text"),
        ({"sentence": "x", "label": 2}, "row 2: label 2: expected negative, positive .ids 0 to 1"),
        ({"sentence": "x", "label": -1}, "row 2: label -1: expected"),
        ({"sentence": "x", "label": 0.5}, "row 2: label 0.5: expected"),
        ({"sentence": "x", "label": float("nan")}, "row 2: label nan: expected"),
        ({"sentence": "x", "label": "neutral"}, "row 2: label 'neutral': expected"),
        ({"sentence": "x", "label": ""}, "row 2: label '': expected"),
        ({"sentence": "x", "label": [1]}, "row 2: label .1.: expected"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    task = tone(tmp_path, [{"sentence": "fine", "label": 1}, row])
    with pytest.raises(UserError, match=message) as caught:
        load_examples(task, "train")
    assert "a.jsonl: row 2" in str(caught.value) and "\n" not in str(caught.value)


def test_a_regression_label_must_be_a_finite_number(tmp_path):
    for value in ("much", float("inf")):
        task = tone(tmp_path, [{"sentence": "x", "label": value}], labels=(), metrics=("pearson",))
        with pytest.raises(UserError, match="expected a number"):
            load_examples(task, "train")


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(UserError, match="no split 'test': use train or evaluation"):
        load_examples(tone(tmp_path, [{"sentence": "x", "label": 1}]), "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ()}, "text names 0 columns"),
        ({"text": ("a", "b", "c")}, "text names 3 columns"),
        ({"labels": ("one",)}, "two or more different names"),
        ({"labels": ("a", "a")}, "two or more different names"),
        ({"metrics": ()}, "no metric is given: for 2 classes use one of accuracy"),
        (
            {"metrics": ("pearson",)},
            "metric 'pearson' is not valid: for 2 classes use one of accuracy",
        ),
        (
            {"labels": ()},
            "metric 'accuracy' is not valid: for regression use one of pearson, spearman",
        ),
        (
            {"labels": ("a", "b", "c"), "metrics": ("f1",)},
            "metric 'f1' is not valid: for 3 classes use one of accuracy, matthews",
        ),
        ({"train_limit": 0}, "a limit of 0 rows"),
    ],
)
def test_a_task_that_does_not_fit_together(change, message):
    with pytest.raises(UserError, match=message):
        files("a.csv", "b.csv", **{"labels": TONE, **change})


def test_one_name_or_a_list_becomes_a_tuple():
    given = {"text": "sentence", "labels": ["n", "p"], "metrics": "accuracy"}
    task = text_task("files", train="a.csv", evaluation="b.csv", **given)
    assert task == files("a.csv", "b.csv", labels=("n", "p"))
    assert task.text == ("sentence",) and task.metrics == ("accuracy",)


def test_glue_from_a_folder(tmp_path):
    (tmp_path / "rte").mkdir()
    row = {"sentence1": "a", "sentence2": "b", "label": "not_entailment"}
    write(tmp_path / "rte", [row], "train.jsonl.gz")
    with pytest.raises(UserError, match="rte has no file validation"):
        make_task("rte", folder=tmp_path)
    write(tmp_path / "rte", [row, row], "validation.jsonl")
    task = text_task("rte", folder=tmp_path, train_limit=1)
    assert load_examples(task, "train").labels.tolist() == [1]
    assert len(load_examples(task, "evaluation")) == 2


def test_sst2_may_lie_in_the_folder_of_its_sentences(tmp_path):
    (tmp_path / "sst2_sentences").mkdir()
    for split in ("train", "validation"):
        row = {"sentence": "fine", "label": 1}
        path = write(tmp_path / "sst2_sentences", [row], f"{split}.jsonl")
    assert make_task("sst2", folder=tmp_path).evaluation == path


def test_glue_without_a_folder_is_tfds_and_then_the_hub():
    assert make_task("cola").train == "tfds:glue/cola@train || hf:nyu-mll/glue/cola@train"
    assert "tfds:glue/mnli@validation_mismatched" in make_task("mnli").evaluation


def test_glue_classes_are_those_of_tfds():
    glue = pytest.importorskip("tensorflow_datasets.text.glue").Glue
    for name, config in glue.builder_configs.items():
        if name in TASKS:
            task = text_task(name)
            assert task.labels == tuple(config.label_classes or ()), name
            assert task.text == tuple(config.text_features), name


@pytest.mark.parametrize(
    ("name", "train", "evaluation"),
    [("cola", 8551, 1043), ("rte", 2490, 277), ("sst2", 6920, 872)],
)
def test_the_development_copies(shared, name, train, evaluation):
    task = text_task(name, folder=shared / "data" / "glue")
    assert len(load_examples(task, "train")) == train
    assert len(load_examples(task, "evaluation")) == evaluation


def test_make_task_names_unknown_tasks_and_options():
    assert isinstance(make_task("reviews"), TextTask)
    with pytest.raises(
        UserError,
        match=r"unknown task 'review' .did you mean 'reviews'.*: use one of files, .*reviews",
    ):
        make_task("review")
    with pytest.raises(UserError, match=r"task reviews has no option .colour"):
        make_task("reviews", colour="red")
