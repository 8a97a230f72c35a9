"""A disk that fills during a checkpoint and a clock that jumps change none of a run's numbers."""

import ast
import dataclasses
import itertools
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import goat_jax
from goat_jax.config.train import TrainConfig
from goat_jax.errors import UserError
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.trainer import fit
from tiny_run import TWO


def same_trained(one, other, step):
    states = [restore_run(folder, step).state.trainable for folder in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


ON_A_DISK = """
import dataclasses, resource, sys
from goat_jax.config.files import load_config
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.trainer import fit

sys.dont_write_bytecode = True  # Python would cut it
source, out, full = sys.argv[1], sys.argv[2], set(map(int, sys.argv[3].split(",")))
save, free = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

def on_a_full_disk(checkpoints, state, *rest):
    # The checkpoint before this one is written, or has failed, on the disk as it was.
    checkpoints._attempt(lambda: checkpoints._manager.wait_until_finished())
    # More than the few records need, less than the largest of the files into which Orbax splits a
    # checkpoint as it likes (those of a model with fewer adapters could all fit).
    limit = (20_000, free[1]) if int(state.step) in full else free
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    save(checkpoints, state, *rest)

Checkpoints.save = on_a_full_disk
config = load_config(source)
train = dataclasses.replace(config.train, save_errors="continue", log_every=100)
fit(dataclasses.replace(config, out=out, train=train), progress=False)
"""
"""A continued run; a limit on file sizes stands for the disk, and no checkpoint of the steps
named can be written. In a process of its own: Orbax leaves threads that failed."""


def run_on_disk(source, out, full, env):
    command = [sys.executable, "-c", ON_A_DISK, str(source), str(out), full]
    env = env | {"JAX_COMPILATION_CACHE_DIR": f"{out}-compiled"}  # jax would cut programs, too
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)


@pytest.mark.nightly  # a full disk in CI is that of test_cli.py
@pytest.mark.parametrize(
    ("full", "code"),
    [
        ("10,15,30", 1),  # no run ends well without its last checkpoint
        pytest.param("10,15", 0, marks=pytest.mark.nightly),
    ],
)
def test_a_run_goes_on_where_a_checkpoint_could_not_be_written(
    tiny, tmp_path, without_torch, full, code
):
    done = run_on_disk(f"{tiny / 'config.py'}:{TWO}", tmp_path / "run", full, without_torch)
    assert done.returncode == code, done.stderr[-2000:]
    assert "the run continues, but a checkpoint could not be written" in done.stderr
    assert "the checkpoint of step 5 is kept" in done.stderr
    kept = Checkpoints(tmp_path / "run", "accuracy", read_only=True)
    steps = kept.all_steps()
    kept.close()
    assert 10 not in steps and (30 in steps) == (code == 0) and max(steps) >= 25


def test_other_answers_to_errors_are_refused():
    message = "train.save_errors 'wait' is not known: give one of stop, continue"
    with pytest.raises(UserError, match=message):
        TrainConfig(save_errors="wait")


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, light_finished, monkeypatch):
    config, undisturbed = light_finished
    # Within Orbax's own timeouts, which it takes from this clock.
    jumps, now = itertools.cycle([0.0, 100.0, -100.0]), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    out = tmp_path / "run"
    summary = fit(dataclasses.replace(config, out=str(out)), progress=False)
    assert summary.after == undisturbed.after
    same_trained(out, undisturbed.folder, config.train.steps)
    for record in read_records(out, "train"):
        rates = {name: value for name, value in record.items() if "second" in name}
        assert 0 <= rates.pop("flops_per_second") < 1e12, record
        assert rates and all(0 <= value < 1e7 for value in rates.values()), record


def test_only_stamps_come_from_the_wall_clock():
    """Durations are differences of clocks that never jump."""
    root = Path(goat_jax.__file__).parent
    used = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.datetime.now"):
                used.add(path.relative_to(root).as_posix())
    assert used == {
        "evaluation/llm_judge.py",  # a stamp of FastChat's format
        "evaluation/judge_client.py",  # Retry-After may be a date
        "training/logging/writers.py",  # a stamp of TensorBoard's format
    }
