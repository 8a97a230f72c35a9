"""Checkpoints: those that are kept, the best one and its record, and damaged ones."""

import dataclasses
import json
import shutil

import orbax.checkpoint as ocp
import pytest

from checkpoints import Batches, save, state_of, without_checksums
from goat_jax.cli.verbs.train import report
from goat_jax.errors import Notice, UserError
from goat_jax.training import loop
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.checksums import damage_of
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.trainer import fit
from tiers import each

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


@pytest.mark.parametrize("every", each([1, 3, 8], [8]))
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
def early_best(light, tmp_path_factory):
    """A run whose first evaluation is the best, and equal to its last: its folder and summary."""
    accuracies = iter([0.1, 0.8, 0.3, 0.8])
    real = loop.evaluate

    def scored(*args, **options):
        found = real(*args, **options)
        return found._replace(scores=found.scores | {"accuracy": next(accuracies)})

    out = tmp_path_factory.mktemp("early") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", scored)
        return out, fit(dataclasses.replace(light, out=str(out)), progress=False)


@pytest.mark.slow
def test_what_training_names_is_what_is_opened(early_best):
    folder, summary = early_best
    assert (summary.best_step, summary.best_score) == (10, 0.8)
    assert restore_run(folder, None).step == 10


@pytest.mark.slow
def test_a_run_without_scores_says_which_step_is_opened(early_best, tmp_path):
    folder, _ = early_best
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    for checkpoint in (old / "checkpoints").iterdir():
        shutil.rmtree(checkpoint / "metrics", ignore_errors=True)
        without_checksums(checkpoint)
    with pytest.warns(Notice, match=r"no checkpoint of .*old has a score .* step 30, the latest"):
        assert restore_run(old, None).step == 30


@pytest.mark.slow
def test_the_report_of_a_run_before_its_first_evaluation(early_best):
    _, summary = early_best
    config = load_run(summary.folder)[0]
    unscored = dataclasses.replace(summary, best_step=None, best_score=None)
    assert "no checkpoint has a score yet" in report(config, unscored)
    assert "best step 10 (0.8000)" in report(config, summary)


@pytest.mark.slow
def test_scores_are_written_as_json(early_best):
    folder, _ = early_best
    kept = json.loads((folder / "checkpoints" / "10" / "metrics" / "metrics").read_text())
    assert kept["accuracy"] == 0.8 and kept["loss"] > 0


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with checkpoints of the steps 10, 20 and 30; 10 is the best."""
    folder = tmp_path_factory.mktemp("three")
    saved_with_restarts(folder, {10: 0.9, 20: 0.7, 30: 0.8}, 3)
    return folder


@pytest.fixture
def copied(three, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(three, tmp_path / "run")


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip(path, bit=0):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def test_every_flipped_bit_is_noticed_by_the_name_of_its_file(copied):
    checkpoint = copied / "checkpoints" / "30"
    assert damage_of(checkpoint, 30) is None
    for number, path in enumerate(files_of(checkpoint)):
        whole = path.read_bytes()
        for bit in (0, 8 * (len(whole) // 2) + number % 8, 8 * len(whole) - 1):
            flip(path, bit)
            found = damage_of(checkpoint, 30)
            assert found is not None
            assert found.startswith(f"{path.relative_to(checkpoint)} has changed"), found
            path.write_bytes(whole)
    assert damage_of(checkpoint, 30) is None


def test_large_files_are_read_by_a_thorough_check_only(copied, monkeypatch):
    monkeypatch.setattr("goat_jax.training.checkpoints.checksums.SMALL", 250)
    checkpoint = copied / "checkpoints" / "30"
    large = max(files_of(checkpoint / "state"), key=lambda path: path.stat().st_size)
    flip(large)
    assert damage_of(checkpoint, 30, thorough=False) is None
    assert damage_of(checkpoint, 30) is not None
    large.write_bytes(large.read_bytes()[:-1])
    assert "bytes instead of" in str(damage_of(checkpoint, 30, thorough=False))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "has changed"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.rename(path.with_name("other")), "is missing"),
        (lambda path: path.with_name("more").write_bytes(b"x"), "more was not written with it"),
    ],
    ids=["cut", "zeroed", "missing", "renamed", "extra"],
)
@pytest.mark.parametrize(
    "name", ["state/manifest.ocdbt", "metrics/metrics", "_CHECKPOINT_METADATA", "checksums.json"]
)
def test_other_damage_is_noticed_too(copied, harm, said, name):
    checkpoint = copied / "checkpoints" / "30"
    harm(checkpoint / name)
    found = damage_of(checkpoint, 30, thorough=False)
    assert found is not None and "\n" not in found
    assert said in found or found.startswith(name), found


def test_a_run_continues_from_the_newest_that_is_intact(copied):
    flip(copied / "checkpoints" / "30" / "notes" / "metadata", 50)
    with pytest.warns(Notice, match=r"step 30 is skipped \(notes/metadata has changed.*step 20"):
        checkpoints = Checkpoints(copied, "accuracy")
    assert checkpoints.latest_step() == 20 and checkpoints.best_step() == 10
    assert checkpoints.restore(state_of(0), Batches()).notes == {"saved": 20}
    save(checkpoints, 30, {"accuracy": 0.1})
    checkpoints.close()
    assert damage_of(copied / "checkpoints" / "30", 30) is None
    assert (copied / "damaged" / "30" / "notes").is_dir()  # nothing is lost


def test_a_folder_with_another_step_in_it_is_passed_over(copied):
    (copied / "checkpoints" / "30").rename(copied / "checkpoints" / "300")
    with pytest.warns(Notice, match=r"step 300 is skipped \(it is the checkpoint of step 30\)"):
        checkpoints = Checkpoints(copied, "accuracy")
    assert checkpoints.all_steps() == [10, 20]
    checkpoints.close()


def test_if_none_is_intact_nothing_is_begun_anew(copied):
    for step in (10, 20, 30):
        flip(copied / "checkpoints" / str(step) / "state" / "manifest.ocdbt")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact \(step 30: state/man.*\)"):
        Checkpoints(copied, "accuracy")
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"10", "20", "30"}


def test_checkpoints_of_older_versions_are_read(copied):
    for step in (10, 20, 30):
        without_checksums(copied / "checkpoints" / str(step))
    checkpoints = Checkpoints(copied, "accuracy")
    assert checkpoints.restore(state_of(0), Batches()).notes == {"saved": 30}
    checkpoints.close()
    (copied / "checkpoints" / "30").rename(copied / "checkpoints" / "300")
    renamed = Checkpoints(copied, "accuracy")
    with pytest.raises(UserError, match=r"300 is the checkpoint of step 30"):
        renamed.restore(state_of(0), Batches())
    renamed.close()


def test_what_a_kill_left_is_removed(copied):
    folder = copied / "checkpoints"
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp-complete")
    shutil.copytree(folder / "10", folder / ".deleted" / "5")
    checkpoints = Checkpoints(copied, "accuracy")
    assert checkpoints.all_steps() == [10, 20, 30]
    save(checkpoints, 40)
    checkpoints.close()
    assert {path.name for path in folder.iterdir()} == {"10", "30", "40"}


@pytest.mark.slow
def test_a_damaged_best_is_passed_over_and_said(early_best, tmp_path):
    folder = shutil.copytree(early_best[0], tmp_path / "run")
    flip(folder / "checkpoints" / "10" / "metrics" / "metrics", 8 * 25)
    with pytest.warns(
        Notice, match=r"damaged .*step 10: metrics/metrics has changed .*: step 30 is used"
    ):
        assert restore_run(folder, None).step == 30
    with pytest.raises(UserError, match=r"no usable checkpoint is intact \(step 10: "):
        restore_run(folder, 10)


@pytest.mark.slow
def test_a_damaged_newest_costs_steps_but_no_bit(light_finished, tmp_path):
    config, summary = light_finished
    folder = shutil.copytree(summary.folder, tmp_path / "run")
    largest = max(files_of(folder / "checkpoints" / "30"), key=lambda path: path.stat().st_size)
    flip(largest, 4 * largest.stat().st_size)
    with pytest.warns(Notice, match=r"step 30 is skipped .* that of step 25"):
        again = fit(dataclasses.replace(config, out=str(folder)), progress=False)
    assert again.after == summary.after and again.best_step == summary.best_step
