"""Real processes on this machine: they train as one, survive SIGKILL bit for bit, stop together."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.mesh.config import MeshConfig
from goat_jax.run.fit import fit
from goat_jax.run.processes import NoRecords, Processes, Votes, agreed
from goat_jax.run.records import read_records
from goat_jax.run.reopen import reopen

STEPS = 24
TARGETS = r"bert\.encoder\..*query"  # few, so that the step compiles soon


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


@pytest.fixture
def start(tiny):
    """Starts all processes of a run, each with two devices; ends those that a test leaves."""
    started = []

    def start(out, count, *mesh, steps=STEPS):
        flags = re.sub(r"device_count=\d+", "device_count=2", os.environ["XLA_FLAGS"])
        command = [sys.executable, "-m", "goat_jax.cli", "train", "--quiet", "--out", str(out)]
        command += ["--config", f"{tiny / 'config.py'}:steps={steps}", *mesh]
        command += ["--adapter.targets", TARGETS]
        command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)]
        own = [
            subprocess.Popen(
                [*command, "--process", str(index)],
                env=dict(os.environ, XLA_FLAGS=flags),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(count)
        ]
        started.extend(own)
        return own

    yield start
    for process in started:
        process.kill()  # nothing, if it has ended
        process.wait()
        process.stdout.close()


def finish(processes, code=0):
    texts = [process.communicate(timeout=400)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), "\n".join(text[-2000:] for text in texts)
    return texts


def last_step(out):
    path = out / "metrics.jsonl"
    found = re.findall(r'"step": (\d+)', path.read_text()) if path.is_file() else []
    return max(map(int, found), default=0)


def wait_for(out, step, processes):
    end = time.monotonic() + 400
    while last_step(out) < step and all(process.poll() is None for process in processes):
        assert time.monotonic() < end, "the processes do not come to the step"
        time.sleep(0.002)


def kill(processes):
    """One process dies; the launcher ends the others."""
    processes[-1].send_signal(signal.SIGKILL)
    for process in processes:
        process.kill()
        process.communicate()


def losses(out):
    return [(r["step"], r["loss"]) for r in read_records(out, "train")]


def same_state(one, other):
    states = [reopen(folder, STEPS).state for folder in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, (s.trainable for s in states)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        (2, ("--mesh.data", "2", "--mesh.fsdp", "2")),
        (4, ("--mesh.fsdp", "4", "--mesh.tensor", "2")),
    ],
)
def test_a_killed_process_changes_no_bit(start, tmp_path, count, mesh):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole, count, *mesh))
    first = start(broken, count, *mesh)
    wait_for(broken, 12, first)
    kill(first)
    assert 12 <= last_step(broken) < STEPS
    fewer = shutil.copytree(broken, tmp_path / "fewer")
    texts = finish(start(broken, count, *mesh))
    assert "finished at step" in texts[0] and "finished" not in texts[-1]
    assert losses(whole) == losses(broken) and len(losses(whole)) == STEPS // 2
    same_state(whole, broken)
    # Half the processes on another mesh go on, too; only the order of sums differs.
    finish(start(fewer, count // 2, "--mesh.data", str(count // 2), "--mesh.fsdp", "2"))
    steps, values = zip(*losses(fewer), strict=True)
    assert steps == tuple(step for step, _ in losses(whole))
    np.testing.assert_allclose(values, [loss for _, loss in losses(whole)], rtol=1e-4)


@pytest.mark.slow
def test_processes_share_a_store_of_decompositions(start, tmp_path):
    store = tmp_path / "svd"

    def train(name, folder):
        finish(start(tmp_path / name, 2, "--mesh.fsdp", "4", "--svd.folder", folder, steps=6))
        return losses(tmp_path / name)

    first = train("first", str(store))
    files = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    assert len(files) == 2  # the query kernels of two layers
    assert train("again", str(store)) == first
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == files
    np.testing.assert_allclose(train("without", "none"), first, rtol=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_stops_all_and_another_mesh_goes_on(start, config, tmp_path):
    out = tmp_path / "run"
    processes = start(out, 2, "--mesh.fsdp", "4", steps=3000)
    wait_for(out, 6, processes)
    processes[-1].send_signal(signal.SIGTERM)
    texts = finish(processes, code=143)
    stopped = int(re.search(r"saved step (\d+)", texts[0])[1])
    assert 6 <= stopped < 3000
    opened = reopen(out, None)  # one process, one device
    assert opened.step <= stopped
    train = dataclasses.replace(config.train, steps=3000)
    again = dataclasses.replace(config, out=str(out), mesh=MeshConfig(2, 2, 2), train=train)
    again = dataclasses.replace(again, adapter=dataclasses.replace(again.adapter, targets=TARGETS))
    # One process, eight devices; told to stop as soon as it runs.
    from goat_jax.run import fit as module

    module_signals = module.Signals

    class Told(module_signals):
        def __enter__(self):
            super().__enter__()
            self.caught = "SIGTERM"
            return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Signals", Told)
        summary = fit(again, progress=False)
    assert summary.step == stopped + 1


@pytest.mark.slow
def test_a_mesh_runs_through_the_loop(config, tmp_path, finished):
    summary = fit(
        dataclasses.replace(config, out=str(tmp_path / "run"), mesh=MeshConfig(2, 2, 2)),
        progress=False,
    )
    alone = finished[1]
    assert summary.after["loss"] == pytest.approx(alone.after["loss"], rel=1e-3)
    assert summary.after["accuracy"] == alone.after["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host", 2, 0), "'host' is not HOST:PORT"),
        (("host:1",), "needs the number of processes"),
        (("host:1", 2, 2), "the index counts from 0"),
        (("auto", 2), "leave them out"),
    ],
)
def test_bad_places_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Processes(*arguments)


def test_one_process_decides_alone(tmp_path):
    assert agreed(True) and not agreed(False)
    assert Votes().cast(True) and not Votes().cast(False)
    with NoRecords(tmp_path) as records:
        records.write("train", 1, loss=1.0)
    assert not list(tmp_path.iterdir())
