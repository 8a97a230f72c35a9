"""SIGKILL at any moment: the run that was killed ends with the bits of the one that was not."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.setup import build

# Counted since the process started, so not part of what a restart repeats.
TIMES = ("seconds", "data_seconds", "device_seconds", "checkpoint_seconds", "tokens_per_second")
TIMES += ("padding_share", "utilization", "host_peak_bytes", "device_peak_bytes")


def start(tiny: Path, out: Path, steps: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "goat_jax.cli.main", "train", "--quiet", "--out", str(out)]
    command += ["--config", f"{tiny / 'config.py'}:steps={steps}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def records(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def without_times(out: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records(out)]


def last_step(out: Path) -> int:
    try:
        return max((record["step"] for record in records(out)), default=0)
    except json.JSONDecodeError:  # a line that is being written
        return 0


def kill_after(process: subprocess.Popen, out: Path, step: int) -> None:
    """SIGKILL as soon as the records show that step."""
    while process.poll() is None and last_step(out) < step:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def final_state(out: Path):
    config, _ = load_run(out)
    built = build(dataclasses.replace(config, out=str(out)))
    checkpoints = Checkpoints(out, "accuracy", read_only=True)
    state = checkpoints.restore(built.state, None).state
    checkpoints.close()
    return state


@pytest.mark.slow
def test_killed_and_restarted_ends_with_the_same_bits(tiny, tmp_path):
    steps, whole, broken = 60, tmp_path / "whole", tmp_path / "broken"
    undisturbed = start(tiny, whole, steps)
    # Before the first checkpoint, in the middle, and right after an evaluation and its save.
    for step in (4, 26, 40):
        kill_after(start(tiny, broken, steps), broken, step)
        assert last_step(broken) < steps, "the run was over before it could be killed"
    last = start(tiny, broken, steps)
    text, _ = last.communicate(timeout=300)
    assert last.returncode == 0, text
    text, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, text

    one, other = final_state(whole), final_state(broken)
    assert int(one.step) == int(other.step) == steps
    chex.assert_trees_all_equal(one.trainable, other.trainable)
    chex.assert_trees_all_equal(one.opt_state, other.opt_state)
    assert without_times(whole) == without_times(broken)

    # The best, the first of equals, is named and kept whatever was killed after it.
    scores = {r["step"]: r["accuracy"] for r in records(whole) if r["kind"] == "eval" and r["step"]}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert f"best step {best} ({scores[best]:.4f})" in text
    for out in (whole, broken):
        checkpoints = Checkpoints(out, "accuracy", read_only=True)
        assert checkpoints.best_step() == best and checkpoints.damage(best) is None
        checkpoints.close()
