"""Which checkpoints are kept, which is the best, and where that is written."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from goat_jax.commands.train import report
from goat_jax.errors import Notice
from goat_jax.run import fit as loop
from goat_jax.run.checkpoint import Checkpoints
from goat_jax.run.fit import fit
from goat_jax.run.folder import load_run
from goat_jax.run.reopen import reopen
from goat_jax.run.state import RunState


class Batches:
    """A data iterator as far as checkpoints know one."""

    def __init__(self):
        self.state = {"next_index": 0}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def state_of(step: int) -> RunState:
    return RunState(
        step=jnp.asarray(step, jnp.int32),
        trainable={"a": jnp.full((4, 3), step, jnp.float32)},
        opt_state=(jnp.zeros((4, 3)),),
        key=jax.random.key(step),
        constants={},
    )


def save(checkpoints: Checkpoints, step: int, scores: dict[str, float] | None = None) -> None:
    data = Batches()
    data.state = {"next_index": step}
    checkpoints.save(state_of(step), data, {"saved": step}, scores)


NAN, INF = float("nan"), float("inf")
SCORES = {10: 0.5, 20: NAN, 30: 0.9, 40: None, 50: 0.9, 60: INF, 70: 0.6, 80: 0.6}


def saved_with_restarts(folder, scores, every):
    """A run that ends after every so many checkpoints and begins anew."""
    steps = sorted(scores)
    for first in range(0, len(steps), every):
        checkpoints = Checkpoints(folder, "accuracy")
        for step in steps[first : first + every]:
            value = scores[step]
            save(checkpoints, step, None if value is None else {"accuracy": value, "loss": 0.25})
        checkpoints.close()


@pytest.mark.parametrize("every", [1, 3, 8])
def test_the_first_of_the_best_is_kept_over_any_restarts(tmp_path, every):
    saved_with_restarts(tmp_path, SCORES, every)
    again = Checkpoints(tmp_path, "accuracy", read_only=True)
    assert again.best_step() == 30
    assert again.all_steps() == [30, 70, 80]
    again.close()


def test_orbax_reads_the_scores(tmp_path):
    saved_with_restarts(tmp_path, {10: 0.5, 20: 0.9, 30: 0.7}, 3)
    options = ocp.CheckpointManagerOptions(best_fn=lambda scores: scores["accuracy"])
    plain = ocp.CheckpointManager(tmp_path / "checkpoints", options=options)
    assert plain.best_step() == 20
    assert plain.metrics(20) == {"accuracy": 0.9, "loss": 0.25}
    assert plain.metadata(20).metrics == {"accuracy": 0.9, "loss": 0.25}
    plain.close()


def test_a_low_loss_is_a_good_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, "loss")
    for step, loss in ((1, 0.5), (2, 0.25), (3, 0.25), (4, 0.5), (5, 0.5)):
        save(checkpoints, step, {"loss": loss})
    checkpoints.wait()
    assert checkpoints.best_step() == 2 and checkpoints.all_steps() == [2, 4, 5]
    checkpoints.close()


def test_without_scores_there_is_no_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, "accuracy")
    save(checkpoints, 5)
    save(checkpoints, 10, {"accuracy": NAN})
    checkpoints.wait()
    assert checkpoints.best_step() is None and checkpoints.scores() == {}
    checkpoints.close()


@pytest.fixture(scope="module")
def early_best(config, tmp_path_factory):
    """A run whose first evaluation is the best, and equal to its last: its folder and summary."""
    accuracies = iter([0.1, 0.8, 0.3, 0.8])
    real = loop.evaluate

    def scored(*args, **options):
        found = real(*args, **options)
        return found._replace(scores=found.scores | {"accuracy": next(accuracies)})

    out = tmp_path_factory.mktemp("early") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", scored)
        return out, fit(dataclasses.replace(config, out=str(out)), progress=False)


def test_what_training_names_is_what_is_opened(early_best):
    folder, summary = early_best
    assert (summary.best_step, summary.best_score) == (10, 0.8)
    assert reopen(folder, None).step == 10


def test_a_run_without_scores_says_which_step_is_opened(early_best, tmp_path):
    folder, _ = early_best
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    for metrics in old.glob("checkpoints/*/metrics"):
        shutil.rmtree(metrics)
    with pytest.warns(Notice, match=r"no checkpoint of .*old has a score .* step 30, the latest"):
        assert reopen(old, None).step == 30


def test_the_report_of_a_run_before_its_first_evaluation(early_best):
    _, summary = early_best
    config = load_run(summary.folder)[0]
    unscored = dataclasses.replace(summary, best_step=None, best_score=None)
    assert "no checkpoint has a score yet" in report(config, unscored)
    assert "best step 10 (0.8000)" in report(config, summary)


def test_scores_are_written_as_json(early_best):
    folder, _ = early_best
    kept = json.loads((folder / "checkpoints" / "10" / "metrics" / "metrics").read_text())
    assert kept["accuracy"] == 0.8 and kept["loss"] > 0
