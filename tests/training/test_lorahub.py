"""LoRAHub over runs: the search uses the runs' own model and beats doing nothing."""

import dataclasses
import json

import numpy as np
import pytest

from goat_jax.data.tasks.registry import files
from goat_jax.errors import UserError
from goat_jax.training.lorahub import compose, few_rows
from goat_jax.training.trainer import fit
from tiny_run import write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(light, tmp_path_factory):
    """Two LoRA runs: one learnt the task, the other its opposite."""
    root = tmp_path_factory.mktemp("hub")
    adapter = dataclasses.replace(light.adapter, method="lora", dropout=0.0)
    config = dataclasses.replace(
        light, adapter=adapter, train=dataclasses.replace(light.train, steps=30, seed=3)
    )
    train, held_out = (str(_opposite(root / f"{n}.jsonl", n)) for n in (300, 50))
    swapped = files(train, held_out, labels=("bad", "good"))
    found = []
    for name, task in (("loss_mask", config.task), ("opposite", swapped)):
        fit(dataclasses.replace(config, task=task, out=str(root / name)), progress=False)
        found.append(root / name)
    return config, found


def _opposite(path, count):
    rows = map(json.loads, write_rows(path, count, count).read_text().splitlines())
    path.write_text("".join(json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows))
    return path


def test_the_run_that_knows_the_task_is_preferred(runs):
    config, folders = runs
    found = compose(config, folders, rows=16, budget=12)
    # Signs mean nothing: every factor carries the coefficient, and this head has two layers.
    assert abs(found.coefficients[0]) > abs(found.coefficients[1])
    assert found.scores["loss"] < found.alone[1]["loss"]
    assert len(found.alone) == 2 and np.isfinite(found.few_shot_loss)


def test_runs_that_do_not_fit_are_refused(runs, light_finished):
    config, folders = runs
    with pytest.raises(UserError, match="1 runs are given: LoRAHub combines two or more"):
        compose(config, folders[:1])
    with pytest.raises(UserError, match="have different frozen kernels"):
        compose(config, [folders[0], light_finished[1].folder])


def test_few_rows_are_the_first_of_the_seed(config):
    (batch,) = few_rows(config, 5)
    assert batch["labels"].shape == (5,)
