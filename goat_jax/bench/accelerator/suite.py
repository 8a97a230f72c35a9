"""Runs the parts of the suite one after the other, each in a process of its own.

A part that fails, crashes or takes too long ends its process alone, and frees the device's memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.bench.accelerator.parts import PARTS
from goat_jax.bench.accelerator.rows import Row, Settings

MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""Variable with the share of a GPU's memory that jax takes, by default three quarters."""


@dataclasses.dataclass(frozen=True)
class PartResult:
    """Result of a part.

    Attributes:
        part: the part's name.
        rows: its measurements; the last one is the failure, if it failed.
        seconds: the time that the part took.
        machine: the description of the machine; empty if the part did not get so far.
    """

    part: str
    rows: tuple[Row, ...]
    seconds: float
    machine: dict[str, Any]


Run = Callable[[str, Settings, float], PartResult]
"""(part, settings, most seconds) -> result."""


def run_part(part: str, settings: Settings, limit: float) -> PartResult:
    """Runs a part in a process of its own and ends it after `limit` seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder) / "results", Path(folder) / "errors"
        command = [sys.executable, "-m", "goat_jax.bench.accelerator", part]
        command += [json.dumps(dataclasses.asdict(settings)), str(results)]
        with errors.open("w") as stderr:
            try:
                code = subprocess.run(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    timeout=limit,
                    env=_environment(os.environ),
                ).returncode
                reason = _reason(code, errors.read_text(errors="replace"))
            except subprocess.TimeoutExpired:
                code, reason = 1, f"took longer than {limit:.0f} seconds"
        return _result(part, results, code, reason, time.monotonic() - start)


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment, in which jax takes nearly all of a GPU's memory."""
    known = any(name.endswith("CLIENT_MEM_FRACTION") for name in own)
    return {**own} if known else {**own, MEMORY: "0.95"}


def _reason(code: int, errors: str) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
    return last[:300] or f"its process ended with code {code}"


def _result(part: str, results: Path, code: int, reason: str, seconds: float) -> PartResult:
    lines = results.read_text().splitlines() if results.exists() else []
    found = [json.loads(line) for line in lines]
    rows = [Row(**each["row"]) for each in found if "row" in each]
    reasons = [each["failed"] for each in found if "failed" in each]
    if code != 0 or not rows:
        rows.append(Row(part, remark=f"failed: {(reasons or [reason])[0]}"))
    machine = next((each["machine"] for each in found if "machine" in each), {})
    return PartResult(part, tuple(rows), seconds, machine)


def run_parts(
    parts: Sequence[str],
    settings: Settings,
    seconds: float,
    run: Run = run_part,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[PartResult]:
    """Runs parts in order within a time; what one leaves over is divided among those that follow.

    Args:
        parts: keys of `PARTS`.
        settings: the settings of all parts.
        seconds: the time for all parts together.
        run: runs one part; tests replace it.
        clock: a function that returns the time in seconds; tests replace it.
    """
    end = clock() + seconds
    for number, part in enumerate(parts):
        still = sum(PARTS[each].share for each in parts[number:])
        yield run(part, settings, max(1.0, (end - clock()) * PARTS[part].share / still))
