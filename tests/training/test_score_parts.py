"""Scores of parts of the held-out rows, as MNLI's matched and mismatched ones."""

import numpy as np

from goat_jax.data.tasks.registry import make_task
from goat_jax.training.task_types import task_type_of


def batch(labels, weights, matched):
    values = {"labels": labels, "weights": weights, "part_matched": matched}
    values["part_mismatched"] = [1 - each for each in matched]
    kinds = {"labels": np.int32}
    return {name: np.array(value, kinds.get(name, np.float32)) for name, value in values.items()}


def test_parts_are_scored_together_and_apart():
    batches = [batch([0, 1, 2], [1, 1, 1], [1, 1, 0]), batch([0, 0, 0], [1, 0, 0], [0, 1, 0])]
    right = [[9, 0, 0], [0, 0, 9], [0, 0, 9], [0, 9, 0], [9, 0, 0], [9, 0, 0]]
    task = make_task("mnli")
    scores = task_type_of(task).scores(task, {}, batches, [np.array(right, np.float32)])
    assert scores == {"accuracy": 0.5, "accuracy_matched": 0.5, "accuracy_mismatched": 0.5}
    wrong = np.array([[0, 9, 0], [9, 0, 0], [0, 0, 9], [9, 0, 0], [9, 0, 0], [9, 0, 0]], np.float32)
    scores = task_type_of(task).scores(task, {}, batches, [wrong])
    assert scores == {"accuracy": 0.5, "accuracy_matched": 0.0, "accuracy_mismatched": 1.0}


def test_rows_without_parts_are_scored_together_only():
    whole = {"labels": np.array([0, 1], np.int32), "weights": np.ones(2, np.float32)}
    outputs = np.array([[9, 0, 0], [9, 0, 0]], np.float32)
    task = make_task("mnli")
    assert task_type_of(task).scores(task, {}, [whole], [outputs]) == {"accuracy": 0.5}
