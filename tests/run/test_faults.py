"""A disk that fills during a checkpoint and a clock that jumps change none of a run's numbers."""

import ast
import dataclasses
import itertools
import resource
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import goat_jax
from goat_jax.errors import RunFailed, UserError
from goat_jax.run.checkpoint import Checkpoints
from goat_jax.run.fit import fit
from goat_jax.run.records import read_records
from goat_jax.run.reopen import reopen
from goat_jax.train_config import TrainConfig

SMALLEST = 90_000
"""Bytes between the records of the tiny run and the largest file of its checkpoints."""


def same_trained(one, other, step):
    states = [reopen(folder, step).state.trainable for folder in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def fill_disk(patch, steps):
    """Lets no checkpoint of these steps be written; a limit on file sizes stands for the disk."""
    save, free = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(checkpoints, state, *rest):
        full = int(state.step) in steps
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALLEST, free[1]) if full else free)
        save(checkpoints, state, *rest)

    patch.setattr(Checkpoints, "save", on_a_full_disk)
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, free)


def run_on_disk(config, out, full, save_errors):
    train = dataclasses.replace(config.train, save_errors=save_errors)
    with pytest.MonkeyPatch.context() as patch:
        emptied = fill_disk(patch, full)
        try:
            fit(dataclasses.replace(config, out=str(out), train=train), progress=False)
        finally:
            emptied()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_goes_on_where_a_checkpoint_could_not_be_written(config, tmp_path, finished):
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match="the run goes on, but .*the checkpoint of step 5 is kept"):
        run_on_disk(config, out, {10, 15}, "continue")
    kept = Checkpoints(out, "accuracy", read_only=True)
    assert 10 not in kept.all_steps() and kept.latest_step() == config.train.steps
    kept.close()
    same_trained(out, finished[1].folder, config.train.steps)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("save_errors", ["stop", "continue"])
def test_a_run_fails_where_none_could_be_written_and_starts_again(
    config, tmp_path, finished, save_errors, recwarn
):
    out = tmp_path / "run"
    with pytest.raises(RunFailed, match="the checkpoint of step 5 is kept: free some space"):
        run_on_disk(config, out, range(6, 31), save_errors)
    recwarn.clear()
    assert fit(dataclasses.replace(config, out=str(out)), progress=False).stopped == "finished"
    same_trained(out, finished[1].folder, config.train.steps)


def test_other_answers_to_errors_are_refused():
    with pytest.raises(UserError, match="save_errors 'wait' is neither stop nor continue"):
        TrainConfig(save_errors="wait")


def test_a_clock_that_jumps_changes_nothing(config, tmp_path, finished, monkeypatch):
    jumps, now = itertools.cycle([0.0, 3e8, -3e8]), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    out = tmp_path / "run"
    summary = fit(dataclasses.replace(config, out=str(out)), progress=False)
    assert summary.after == finished[1].after
    same_trained(out, finished[1].folder, config.train.steps)
    for record in read_records(out, "train"):
        rates = [value for name, value in record.items() if "second" in name]
        assert rates and all(0 <= value < 1e7 for value in rates), record


def test_only_stamps_come_from_the_wall_clock():
    """Durations are differences of clocks that never jump."""
    root = Path(goat_jax.__file__).parent
    used = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"):
                used.add(path.relative_to(root).as_posix())
    assert used == {"run/judging.py", "run/mirrors.py"}  # stamps of FastChat and TensorBoard
