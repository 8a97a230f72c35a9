"""MOELoRA through `fit`: rows of several tasks train the gates of these tasks and of no other."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.setup import build
from goat_jax.training.trainer import fit


def numbered(source, path, tasks):
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    rows = [{**row, "set": tasks[i % len(tasks)]} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def of_tasks(light, tmp_path):
    config = light
    task = dataclasses.replace(
        config.task,
        train=numbered(config.task.train, tmp_path / "train.jsonl", [0, 2]),
        evaluation=numbered(config.task.evaluation, tmp_path / "test.jsonl", [0, 2]),
        task_id="set",
    )
    adapter = dataclasses.replace(config.adapter, method="moelora", options={"num_tasks": 3})
    train = dataclasses.replace(config.train, steps=10)
    return dataclasses.replace(
        config, task=task, adapter=adapter, train=train, out=str(tmp_path / "run")
    )


def embeddings(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.trainable["adapter"])
    return [np.asarray(leaf) for path, leaf in leaves if path[-1].key == "task_embedding"]


@pytest.mark.slow
def test_only_the_tasks_of_the_rows_learn(of_tasks):
    before = embeddings(build(of_tasks).state)
    summary = fit(of_tasks, progress=False)
    assert summary.before and summary.after["loss"] < summary.before["loss"]
    for old, new in zip(before, embeddings(restore_run(summary.folder, 10).state), strict=True):
        moved = np.abs(new - old).max(-1) > 0  # by layer and task
        assert moved[:, [0, 2]].all() and not moved[:, [1, 3]].any()


def test_a_run_on_rows_without_tasks_says_what_to_give(of_tasks):
    one = dataclasses.replace(of_tasks, task=dataclasses.replace(of_tasks.task, task_id=None))
    with pytest.raises(UserError, match=r"name their column with --task.task-id"):
        fit(one, progress=False)
