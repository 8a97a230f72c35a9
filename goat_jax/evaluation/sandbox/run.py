"""Runs a program and its test in two sandboxed processes, and returns the verdict."""

import base64
import contextlib
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.sandbox import landlock, seccomp
from goat_jax.evaluation.sandbox.limits import Limits, ProgramResult, Trial

CHILD = Path(__file__).with_name("inside.py")
DEFAULT_LIMITS = Limits()
ENDING = 1.0
"""Longest wait between a process closing its pipes and its end, in seconds."""
LARGEST = 2**16
"""Largest verdict that is read, in bytes; its line is far shorter."""


def check_sandbox() -> None:
    """Raises `UserError`, saying what is missing, if programs cannot be confined here."""
    if not sys.platform.startswith("linux"):
        raise UserError(f"programs of a model are run on Linux only, not on {sys.platform}")
    if platform.machine() not in seccomp.MACHINES:
        known = " or ".join(seccomp.MACHINES)
        raise UserError(f"programs of a model are run on {known}, not on {platform.machine()}")
    if not landlock.abi():
        raise UserError(
            "programs of a model are not run here: this kernel has no Landlock (Linux 5.13 and "
            "later have it unless it is disabled at boot)"
        )


def run_program(trial: Trial, limits: Limits = DEFAULT_LIMITS) -> ProgramResult:
    """Runs one Python program against its test, both confined.

    The program only computes. Its test runs in another process, calls the program's functions
    over a pair of pipes and compares the plain values that come back.

    Args:
        trial: the program and its test.
        limits: the resource limits of each of the two processes.

    Raises:
        UserError: this machine cannot confine programs.
        RunFailed: confining a process failed despite the check; the program was not run.
    """
    check_sandbox()
    # The folder stays empty: each child mounts its own file system over it.
    folder = tempfile.TemporaryDirectory(prefix="goat-jax-", ignore_cleanup_errors=True)
    with folder as place, contextlib.ExitStack() as stack:
        questions, answers = _Pipe(stack), _Pipe(stack)
        program = _Child(place, stack, questions.reading, answers.writing)
        test = _Child(place, stack, answers.reading, questions.writing)
        questions.close()
        answers.close()
        code = f"{trial.program}\n{trial.setup}" if trial.setup else trial.program
        program.order(limits, program=code)
        test.order(
            limits, program=None, test=trial.test, known=trial.known, functions=trial.functions
        )
        end = time.monotonic() + limits.seconds
        of_program, of_test = program.read_until(end), test.read_until(end)
        if of_program is None or of_test is None:
            return ProgramResult(False, f"not done after {limits.seconds:g} s")
        return _outcome(of_program, of_test, program, test)


def run_programs(
    trials: Sequence[Trial],
    limits: Limits = DEFAULT_LIMITS,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ProgramResult]:
    """Runs several programs, `workers` at a time, and returns the outcomes in their order.

    Args:
        trials: the programs and their tests.
        limits: the resource limits of each process.
        workers: the number of programs that run at a time.
        progress: a function that is called with the number of finished programs.

    Raises:
        UserError: this machine cannot confine programs.
        RunFailed: confining a process failed despite the check.
    """
    check_sandbox()
    outcomes = []
    with ThreadPoolExecutor(workers) as pool:
        for outcome in pool.map(lambda trial: run_program(trial, limits), trials):
            outcomes.append(outcome)
            progress(len(outcomes))
    return outcomes


class _Pipe:
    """Two ends of a pipe, for children to inherit."""

    def __init__(self, stack: contextlib.ExitStack):
        self.reading, self.writing = os.pipe()
        self._open = True
        stack.callback(self.close)

    def close(self) -> None:
        if self._open:
            os.close(self.reading)
            os.close(self.writing)
        self._open = False


class _Child:
    """A sandboxed process, which is killed when the exit stack closes."""

    def __init__(self, folder: str, stack: contextlib.ExitStack, reading: int, writing: int):
        self.pipes = (reading, writing)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
            pass_fds=self.pipes,
            start_new_session=True,
        )
        stack.callback(self.end)

    def order(self, limits: Limits, **code: Any) -> None:
        """Sends the child its order: how to confine itself, and the code to run."""
        order = _confinement(limits, self.process.pid) | {"pipes": self.pipes} | code
        stdin = self.process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError), stdin:
            stdin.write(json.dumps(order).encode())

    def read_until(self, end: float) -> bytes | None:
        """Reads all of the child's standard output; None if it is not closed in time."""
        stdout = self.process.stdout
        assert stdout is not None
        waiting = select.poll()
        waiting.register(stdout, select.POLLIN)
        output = b""
        while waiting.poll(max(0.0, end - time.monotonic()) * 1000):
            part = os.read(stdout.fileno(), LARGEST)
            output += part
            if not part or len(output) > LARGEST:
                return output
        return None

    def how_it_ended(self) -> str:
        """Describes how a process whose pipes are closed ended: its signal or its exit code."""
        try:
            code = self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return "its pipes are closed, it still runs"
        if code >= 0:
            return f"exit code {code}"
        names = {int(each): each.name for each in signal.Signals}
        return f"signal {names.get(-code, -code)}"

    def end(self) -> None:
        """Kills the child with its process group and waits for it."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _confinement(limits: Limits, pid: int) -> dict[str, Any]:
    """Builds the part of a child's order that confines it."""
    version = landlock.abi()
    return {
        "package": str(CHILD.parent.parent),
        "parent": os.getpid(),
        "handled": landlock.ruleset(version),
        "grants": landlock.grants(),
        "own": (".", landlock.own_rights(version)),
        "filter": base64.b64encode(seccomp.filter_program(pid, platform.machine())).decode(),
        "cpu_seconds": limits.cpu_seconds,
        "memory": limits.memory,
        "disk": limits.disk,
        "files": limits.files,
    }


def _outcome(of_program: bytes, of_test: bytes, program: _Child, test: _Child) -> ProgramResult:
    """Parses the verdict from the output of both processes.

    The program's process writes nothing unless it could not be confined.

    Raises:
        RunFailed: a process could not be confined.
    """
    for output in (of_program, of_test):
        if b"refused" in output and (why := _read(output).get("refused")):
            raise RunFailed(f"the sandbox could not be set up, nothing was run: {why}")
    verdict = _read(of_test)
    if not verdict:
        return ProgramResult(False, f"its test ended before its last line ({test.how_it_ended()})")
    detail = "".join(each if each.isprintable() else "?" for each in str(verdict["detail"]))
    if verdict["gone"]:
        detail += f" ({program.how_it_ended()})"
    return ProgramResult(verdict["passed"], detail)


def _read(output: bytes) -> dict[str, Any]:
    try:
        return json.loads(output)
    except ValueError:
        return {}
