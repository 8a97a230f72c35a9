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

import dying
from goat_jax.errors import UserError
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.distributed.lifeline import AGAIN, Lifeline
from goat_jax.training.distributed.processes import (
    NoMetricsLog,
    Processes,
    StopConsensus,
    from_first,
)
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.trainer import fit
from kinds import present
from ports import free_port
from tiny_run import LIGHT

STEPS = 16


@pytest.fixture
def start(tiny, without_torch):
    """Starts all processes of a run, each with two devices; ends those that a test leaves."""
    started = []

    def start(out, count, *mesh, steps=STEPS, last_dies_after=None):
        flags = re.sub(r"device_count=\d+", "device_count=2", os.environ["XLA_FLAGS"])
        programs = [["-m", "goat_jax.cli.main"]] * count
        if last_dies_after is not None:
            programs[-1] = [dying.__file__, str(last_dies_after)]
        command = ["train", "--quiet", "--out", str(out), *mesh]
        command += ["--config", f"{tiny / 'config.py'}:{LIGHT},steps={steps}"]
        command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)]
        own = [
            subprocess.Popen(
                [sys.executable, *program, *command, "--process", str(index)],
                env=without_torch | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index, program in enumerate(programs)
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
        time.sleep(0.05)


def end(processes):
    """The last process dies by itself; the launcher ends the others."""
    processes[-1].communicate(timeout=400)
    assert processes[-1].returncode == -signal.SIGKILL
    for process in processes[:-1]:
        process.kill()
        process.communicate()


def losses(out):
    return [(r["step"], r["loss"]) for r in read_records(out, "train")]


def same_state(one, other):
    states = [restore_run(folder, STEPS).state for folder in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, (s.trainable for s in states)), strict=True):
        np.testing.assert_array_equal(a, b)


# Fourteen starts and seven. In CI two processes continue another's run and are stopped (below),
# and one that is killed and restarted ends with the same bits (test_resume.py).
@pytest.mark.nightly
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
    end(start(broken, count, *mesh, last_dies_after=12))
    assert 10 <= last_step(broken) <= 12  # the first process writes a step after it has begun two
    fewer = shutil.copytree(broken, tmp_path / "fewer")
    texts = finish(start(broken, count, *mesh))
    assert "finished at step" in texts[0] and "finished" not in texts[-1]
    assert losses(whole) == losses(broken) and len(losses(whole)) == STEPS // 2
    same_state(whole, broken)
    # Half the processes on another mesh continue it, too; only the order of sums differs.
    finish(start(fewer, count // 2, "--mesh.data", str(count // 2), "--mesh.fsdp", "2"))
    steps, values = zip(*losses(fewer), strict=True)
    assert steps == tuple(step for step, _ in losses(whole))
    np.testing.assert_allclose(values, [loss for _, loss in losses(whole)], rtol=1e-4)


# All other runs here use a store, too: the default one.
@pytest.mark.nightly
def test_processes_share_a_store_of_decompositions(start, tmp_path):
    store = tmp_path / "svd"

    def train(name, folder, count=2):
        mesh = ("--mesh.fsdp", str(2 * count))
        finish(start(tmp_path / name, count, *mesh, "--svd.folder", folder, steps=6))
        return losses(tmp_path / name)

    first = train("first", str(store))
    files = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    assert len(files) == 2  # the query kernels of two layers
    assert train("again", str(store)) == first
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == files
    np.testing.assert_allclose(train("without", "none", count=1), first, rtol=1e-4)


@pytest.fixture(scope="module")
def on_a_mesh(light, tmp_path_factory):
    """The light run on eight devices of one process, trained to its end."""
    out = tmp_path_factory.mktemp("mesh") / "run"
    config = dataclasses.replace(light, out=str(out), mesh=MeshConfig(2, 2, 2))
    return fit(config, progress=False)


@pytest.mark.slow
def test_a_mesh_runs_through_the_loop(on_a_mesh, light_finished):
    alone = light_finished[1]
    assert on_a_mesh.after["loss"] == pytest.approx(alone.after["loss"], rel=1e-3)
    assert on_a_mesh.after["accuracy"] == alone.after["accuracy"]


# In CI one process is stopped by a signal (test_trainer.py), processes end together (below), and a
# quantised run is opened on another mesh (test_quantized_run.py).
@pytest.mark.nightly
def test_sigterm_to_one_stops_all_and_another_mesh_goes_on(start, on_a_mesh, tmp_path):
    # From one process of eight devices to two processes of two devices.
    out = shutil.copytree(on_a_mesh.folder, tmp_path / "run")
    processes = start(out, 2, "--mesh.fsdp", "4", steps=3000)
    wait_for(out, 36, processes)
    processes[-1].send_signal(signal.SIGTERM)
    texts = finish(processes, code=143)
    stopped = int(present(re.search(r"saved step (\d+)", texts[0]))[1])
    assert 36 <= stopped < 3000
    steps = [step for step, _ in losses(out)]
    assert steps == list(range(2, steps[-1] + 1, 2))
    # One process, one device. The step is named: there may have been no evaluation yet.
    assert restore_run(out, stopped).step == stopped


AS_ONE = """
import sys, threading
from goat_jax.cli.entry import in_one_line
from goat_jax.errors import UserError
from goat_jax.training.distributed.processes import Processes, from_first, as_one

what, address, count, index = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def action():
    if what == "error" and index == 1:
        raise UserError("a wrong word")
    if what != "idle":
        from_first(1)
    print("ready", flush=True)
    while what == "collective":
        from_first(1)
    if what in ("idle", "error"):
        threading.Event().wait()
    return 0

sys.exit(as_one(Processes(address, count, index), lambda: in_one_line("goat-jax", action)))
"""
"""A process of several, without a model: it waits, is in collectives, fails or ends well."""


def run_as_one(what, count, victim):
    """Codes and error lines of the processes; one of them is killed when all are ready."""
    address = f"127.0.0.1:{free_port()}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", AS_ONE, what, address, str(count), str(i)], **pipes)
        for i in range(count)
    ]
    try:
        if victim is not None:
            for process in processes:
                while "ready" not in present(process.stdout).readline():
                    assert process.poll() is None
            processes[victim].kill()
        errors = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], errors


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count", "victim"), [("idle", 2, 0), ("collective", 3, 2)])
def test_when_one_is_killed_the_others_end_with_one_line(what, count, victim):
    """They wait outside of jax, as while they compile, or in a collective."""
    codes, errors = run_as_one(what, count, victim)
    assert codes.pop(victim) == -signal.SIGKILL and errors.pop(victim) == ""
    assert codes == [75] * (count - 1)
    line = f"goat-jax: error: process {victim} was killed or crashed: {AGAIN}\n"
    if victim == 0:  # XLA's own thread may log first that the coordinator is gone
        errors = ["".join(re.findall(r"^goat-jax:.*\n|^Traceback", e, re.M)) for e in errors]
    assert errors == [line] * (count - 1)


@pytest.mark.slow
def test_when_one_fails_the_others_end_with_its_code():
    codes, errors = run_as_one("error", 2, None)
    assert codes == [2, 2]
    assert errors[1] == "goat-jax: error: a wrong word\n"
    assert errors[0] == "goat-jax: error: process 1 has failed: see its message\n"


@pytest.mark.slow
def test_processes_that_end_well_end_in_silence():
    assert run_as_one("done", 2, None) == ([0, 0], ["", ""])


def test_a_stranger_at_the_port_means_nothing(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"ended with {code}"))
    lifeline = Lifeline(0)
    port = int(lifeline.listen().split()[0])
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(36)):
        with socket.create_connection(("127.0.0.1", port), 60) as peer:
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""  # closed on the other side, too
    assert not lifeline._peers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host", 2, 0), "'host' is not valid: give HOST:PORT"),
        (("host:1",), "needs --processes and --process"),
        (("host:1", 2, 2), "the index counts from 0"),
        (("auto", 2), "leave them out"),
    ],
)
def test_bad_places_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Processes(*arguments)


def test_one_process_decides_alone(tmp_path):
    assert from_first(1) and not from_first(0)
    assert StopConsensus().cast(True) and not StopConsensus().cast(False)
    with NoMetricsLog(tmp_path) as records:
        records.write("train", 1, loss=1.0)
    assert not list(tmp_path.iterdir())
