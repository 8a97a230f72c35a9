"""Runs a program in the sandbox, from outside: starts the child, watches it, hears what it says."""

import base64
import contextlib
import json
import os
import platform
import secrets
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
from goat_jax.sandbox import landlock, seccomp
from goat_jax.sandbox.limits import Limits, Outcome

CHILD = Path(__file__).with_name("inside.py")
DEFAULT_LIMITS = Limits()
GLANCE = 0.02
"""Seconds between looks at a running child."""
ANSWER = 4096
"""Bytes that are read of what a child says; its own line is far shorter."""


def check_sandbox() -> None:
    """Raises UserError, saying what is missing, where programs could not be confined."""
    if not sys.platform.startswith("linux"):
        raise UserError(f"programs of a model are run on Linux only, not on {sys.platform}")
    if platform.machine() not in seccomp.MACHINES:
        known = " or ".join(seccomp.MACHINES)
        raise UserError(f"programs of a model are run on {known}, not on {platform.machine()}")
    if not landlock.abi():
        raise UserError(
            "programs of a model are not run here: this kernel has no Landlock (Linux 5.13 and "
            "later have it, unless it is switched off at boot)"
        )


def run_program(program: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Runs one Python program, confined, in a temporary folder that is gone afterwards.

    Args:
        program: source code; it has passed if it comes to its end without an exception.

    Raises:
        UserError: this machine cannot confine it.
        RunFailed: the child could not be confined all the same; the program was not run.
    """
    check_sandbox()
    with tempfile.TemporaryDirectory(prefix="goat-jax-", ignore_cleanup_errors=True) as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            return _watched(child, program, limits, Path(folder))
        finally:
            _end(child)


def run_programs(
    programs: Sequence[str],
    limits: Limits = DEFAULT_LIMITS,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Runs several programs, `workers` at a time; outcomes in their order.

    Args:
        progress: is told how many are done.
    """
    check_sandbox()
    outcomes = []
    with ThreadPoolExecutor(workers) as pool:
        for outcome in pool.map(lambda program: run_program(program, limits), programs):
            outcomes.append(outcome)
            progress(len(outcomes))
    return outcomes


def _order(program: str, limits: Limits, pid: int, secret: str) -> dict[str, Any]:
    """What the child is told."""
    version = landlock.abi()
    return {
        "program": program,
        "secret": secret,
        "handled": landlock.handled(version),
        "grants": landlock.grants(version),
        "filter": base64.b64encode(seccomp.filter_program(pid, platform.machine())).decode(),
        "cpu_seconds": limits.cpu_seconds,
        "memory": limits.memory,
        "disk": limits.disk,
        "files": limits.files,
    }


def _watched(child: subprocess.Popen, program: str, limits: Limits, folder: Path) -> Outcome:
    secret = secrets.token_hex(16)
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(json.dumps(_order(program, limits, child.pid, secret)).encode())
    end = time.monotonic() + limits.seconds
    while child.poll() is None:
        if time.monotonic() > end:
            return Outcome(False, f"not done after {limits.seconds:g} s")
        if _size(folder) > limits.disk:
            return Outcome(False, f"more than {limits.disk} bytes in its folder")
        time.sleep(GLANCE)
    os.set_blocking(child.stdout.fileno(), False)
    return _outcome(child.stdout.read(ANSWER) or b"", secret, child.returncode)


def _outcome(said: bytes, secret: str, code: int) -> Outcome:
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {}
    if isinstance(answer, dict) and "refused" in answer:
        raise RunFailed(f"the sandbox could not be set up, nothing was run: {answer['refused']}")
    if not isinstance(answer, dict) or answer.get("secret") != secret:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome(False, f"ended by itself before its last line ({how})")
    return Outcome(not answer["detail"], str(answer["detail"]))


def _size(folder: Path) -> int:
    """Bytes that the files in a folder take."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def _end(child: subprocess.Popen) -> None:
    """Ends the child, which leads a process group of its own, and waits for it."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
