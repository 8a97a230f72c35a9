"""Rows of several tasks tell their batches which: MOELoRA and LoRAMoE go by it."""

import json
from typing import Any

import numpy as np
import pytest

from goat_jax.data.pipeline.packing import Texts
from goat_jax.data.pipeline.tokenize import Encoded
from goat_jax.data.tasks.language import LanguageTask, load_pieces
from goat_jax.data.tasks.text import TextTask, load_examples
from goat_jax.errors import UserError

UNUSED: Any = None
"""The tokenizer of rows without messages."""


def text_task(path, **options):
    options = {"task_id": "set", "task_type": "kind", **options}
    return TextTask(
        "t", str(path), str(path), ("text",), "label", ("a", "b"), ("accuracy",), **options
    )


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"text": f"row {i}", "label": "a", "set": i, "kind": i % 2} for i in range(3)]


def test_examples_have_their_tasks(tmp_path):
    found = load_examples(text_task(write(tmp_path / "a.jsonl", *ROWS)), "train")
    assert {name: ids.tolist() for name, ids in found.tasks.items()} == {
        "task_ids": [0, 1, 2],
        "task_types": [0, 1, 0],
    }
    assert (
        load_examples(text_task(tmp_path / "a.jsonl", task_id=None, task_type=None), "train").tasks
        == {}
    )


def test_numbers_of_a_csv_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,set,kind\nfine,a,4,1\n")
    found = load_examples(text_task(tmp_path / "a.csv"), "train")
    assert found.tasks["task_ids"].tolist() == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": -1}, r"row 3: column 'set' holds -1: expected a number from 0"),
        ({"set": "cola"}, r"column 'set' holds 'cola': expected a number from 0"),
        ({"kind": 2}, r"column 'kind' holds 2: expected 0 or 1"),
        ({"set": None}, r"no value in column 'set'"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path, change, message):
    path = write(tmp_path / "a.jsonl", *ROWS[:2], {**ROWS[2], **change})
    with pytest.raises(UserError, match=message):
        load_examples(text_task(path), "train")


def test_batches_of_rows_repeat_the_last_ones_task_in_free_places():
    rows = Encoded(
        [np.array([4])] * 3, None, np.ones(3, np.int32), np.zeros(3, np.int32),
        tasks={"task_ids": np.array([7, 8, 9], np.int32)},
    )  # fmt: skip
    assert rows.gather(np.array([2, 0, -1]), 2)["task_ids"].tolist() == [9, 7, 7]


def test_packed_texts_have_a_task_for_every_token():
    ids = [np.arange(n, dtype=np.int32) for n in (2, 3, 1)]
    texts = Texts(
        ids, [np.ones(len(i), bool) for i in ids], [[1, 2], [0]], np.array([4, 2]),
        tasks={"task_ids": np.array([5, 6, 7], np.int32)},
    )  # fmt: skip
    assert texts.gather(np.array([0, 1]), 5)["task_ids"].tolist() == [
        [6, 6, 6, 7, 0],
        [5, 5, 0, 0, 0],
    ]


def test_language_rows_have_their_tasks(tmp_path):
    path = str(write(tmp_path / "a.jsonl", *ROWS))
    task = LanguageTask("t", path, path, format="text", packing=False, task_type="kind")
    assert [text.tasks for text in load_pieces(task, "train", UNUSED)] == [
        {"task_types": 0},
        {"task_types": 1},
        {"task_types": 0},
    ]
    with pytest.raises(UserError, match="one task_type: set packing=False"):
        LanguageTask("t", path, path, format="text", task_type="kind")
