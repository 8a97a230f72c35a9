"""The run folder: what may become one, whose it is, and who may write to it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from goat_jax.errors import Notice, UserError
from goat_jax.training import trainer
from goat_jax.training.checkpoints import lock
from goat_jax.training.checkpoints.lock import LOCK, locked
from goat_jax.training.checkpoints.run_dir import acquired, versions
from goat_jax.training.trainer import fit

HOLD = """
import sys
from pathlib import Path
from goat_jax.training.checkpoints.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_is_dead(holder, config, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "build", lambda config: pytest.fail("the model was loaded"))
    with pytest.raises(UserError) as refused:
        fit(dataclasses.replace(config, out=str(tmp_path)), progress=False)
    message = str(refused.value)
    assert f"{tmp_path} is in use by process {holder.pid} on " in message
    assert "\n" not in message
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with acquired(tmp_path, config) as begun:
        assert not begun


def lock_again(folder):
    with locked(folder):
        pass


def test_one_process_cannot_lock_twice_and_can_lock_again(tmp_path):
    for _ in range(2):
        with locked(tmp_path), pytest.raises(UserError, match="is in use by"):
            lock_again(tmp_path)


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path, monkeypatch):
    """The holder before may remove file and folder between our opening and our locking."""
    real, removed = lock._lock_or_refuse, []

    def remove_first(file, folder):
        real(file, folder)
        if not removed:
            removed.append((folder / LOCK).unlink())

    monkeypatch.setattr(lock, "_lock_or_refuse", remove_first)
    with locked(tmp_path), pytest.raises(UserError, match="is in use by"):
        lock_again(tmp_path)


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    def unknown(file, how):
        raise OSError(lock.UNKNOWN_HERE[0], "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with pytest.warns(Notice, match="has no locks"), locked(tmp_path):
        pass


def test_what_a_killed_start_left_is_no_other_content(config, tmp_path):
    (tmp_path / LOCK).write_text("process 1 on nowhere")
    (tmp_path / ".run.json.0123456789abcdef.part").write_text("{")
    with acquired(tmp_path, config) as begun:
        assert not begun


@pytest.mark.parametrize("name", ["x" * 300, "file/run"], ids=["too-long", "below-a-file"])
def test_a_name_that_cannot_be_is_said_before_anything_is_loaded(
    config, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(trainer, "build", lambda config: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be a run folder \(.*\): choose another --out"):
        fit(dataclasses.replace(config, out=f"{tmp_path}/{name}"), progress=False)


def test_a_folder_that_cannot_be_written_to(config, tmp_path, monkeypatch):
    def denied(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock.os, "open", denied)  # root may write anywhere
    refused = pytest.raises(UserError, match=r"cannot be a run folder \(Permission denied\)")
    with refused, acquired(tmp_path, config):
        pass


@pytest.mark.slow
def test_other_settings_are_refused_before_anything_is_loaded(light_finished, monkeypatch):
    config, _ = light_finished
    monkeypatch.setattr(trainer, "build", lambda config: pytest.fail("the model was loaded"))
    other = dataclasses.replace(config.train, seed=5)
    with pytest.raises(UserError, match=r"train.seed = 0, now 5"):
        fit(dataclasses.replace(config, train=other), progress=False)


def test_a_start_that_fails_leaves_no_folder(config, tmp_path):
    broken = dataclasses.replace(config.model, path=str(tmp_path / "no model"))
    config = dataclasses.replace(config, model=broken, out=str(tmp_path / "a" / "run"))
    with pytest.raises(UserError, match="no model"):
        fit(config, progress=False)
    assert not (tmp_path / "a" / "run").exists()


@pytest.mark.slow
def test_versions_are_in_run_json(light_finished):
    folder = light_finished[1].folder
    saved = json.loads((folder / "run.json").read_text())
    assert saved["versions"] == versions()
    assert set(versions()) >= {"goat_jax", "jax", "flax", "optax", "orbax", "transformers", "grain"}
    assert os.path.exists(folder / LOCK)
