"""SIGKILL after any step: the run that was killed ends with the bits of the one that was not."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import chex
import pytest

import dying
from goat_jax.cli.main import main
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.setup import build
from tiny_run import LIGHT

# Counted since the process started, so not part of what a restart repeats.
TIMES = ("seconds", "data_seconds", "device_seconds", "checkpoint_seconds", "tokens_per_second")
TIMES += (
    "padding_share",
    "utilization",
    "mfu",
    "flops_per_second",
    "host_peak_bytes",
    "device_peak_bytes",
)


def killed(step: int, arguments: list[str], env: dict) -> None:
    """Runs a process that is killed after a step."""
    command = [sys.executable, dying.__file__, str(step), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def records(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def without_times(out: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records(out)]


def final_state(out: Path):
    config, _ = load_run(out)
    built = build(dataclasses.replace(config, out=str(out)))
    checkpoints = Checkpoints(out, "accuracy", read_only=True)
    state = checkpoints.restore(built.state, None).state
    checkpoints.close()
    return state


# Right after an evaluation and its save, whose files are being written. Nightly also before the
# first checkpoint and in the middle, one after another.
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param((20,), marks=pytest.mark.slow),
        pytest.param((4, 13, 20), marks=pytest.mark.nightly),
    ],
    ids=len,
)
def test_killed_and_restarted_ends_with_the_same_bits(
    tiny, light_finished, tmp_path, without_torch, kills, capsys
):
    whole, broken = light_finished[1].folder, tmp_path / "broken"
    arguments = ["train", "--quiet", "--out", str(broken)]
    arguments += ["--config", f"{tiny / 'config.py'}:{LIGHT}"]
    for step in kills:
        killed(step, arguments, without_torch)
    capsys.readouterr()
    assert main(arguments) == 0
    text = capsys.readouterr().out

    one, other = final_state(whole), final_state(broken)
    assert int(one.step) == int(other.step) == light_finished[0].train.steps
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
