"""`run_parity`: replays bundles and reports the error of every quantity."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from goat_jax.errors import UserError
from goat_jax.parity.bundle import LAYERS, METHODS, MODEL, Found, find_bundles
from goat_jax.parity.checks import Check, Note, worst
from goat_jax.parity.layer_bundle import read_cases
from goat_jax.parity.layers import replay_case
from goat_jax.parity.methods.cases import read_entries
from goat_jax.parity.methods.replay import replay_entry
from goat_jax.parity.models import replay_run
from goat_jax.text_tables import render_table

Paths = Sequence[Path | str]
Replay = Callable[[], list[Check | Note]]


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The results of replaying bundles.

    Attributes:
        checks: the comparisons of all quantities.
        notes: remarks, such as what was not compared, and why.
        errors: the bundles or cases that could not be replayed, one line each.
    """

    checks: list[Check]
    notes: list[Note]
    errors: list[str]

    @property
    def failed(self) -> list[Check]:
        """Checks that are out of tolerance."""
        return [check for check in self.checks if not check.ok]

    @property
    def exit_code(self) -> int:
        """Exit code: 2 if any replay was impossible or nothing was compared, 1 if a check failed.

        Otherwise it is 0.
        """
        if self.errors or not self.checks:
            return 2
        return 1 if self.failed else 0


def replay(paths: Paths) -> ParityReport:
    """Replays all bundles in these folders and their subfolders.

    A broken bundle does not stop the others.

    Raises:
        UserError: a path has no bundle.
    """
    report = ParityReport([], [], [])
    for bundle in find_bundles(paths):
        try:
            for job in _jobs(bundle):
                _run(job, bundle, report)
        except UserError as error:
            report.errors.append(_named(error, bundle))
    return report


def _jobs(bundle: Found) -> Iterator[Replay]:
    """Yields the replays of a bundle: one per case, or the model run."""
    if bundle.marker == LAYERS:
        for case in read_cases(bundle.folder):
            yield lambda case=case: replay_case(case)
    elif bundle.marker == MODEL:
        yield lambda: replay_run(bundle.folder)
    elif bundle.marker == METHODS:
        for entry in read_entries(bundle.folder):
            yield lambda entry=entry: replay_entry(entry)


def _run(job: Replay, bundle: Found, report: ParityReport) -> None:
    try:
        for one in job():
            if isinstance(one, Note):
                report.notes.append(one)
            else:
                report.checks.append(one)
    except UserError as error:
        report.errors.append(_named(error, bundle))


def _named(error: UserError, bundle: Found) -> str:
    """Returns the error's message, preceded by the bundle's folder if it does not name it."""
    text = " ".join(str(error).split())
    return text if str(bundle.folder) in text else f"{bundle.folder}: {text}"


def run_parity(paths: Paths) -> list[Check]:
    """Replays all bundles in these folders and their subfolders and returns all checks.

    Raises:
        UserError: a path has no bundle, a bundle cannot be replayed, or there is nothing to
            compare.
    """
    report = replay(paths)
    _refuse_if_empty(report, paths)
    if report.errors:
        raise UserError("; ".join(report.errors))
    return report.checks


def _refuse_if_empty(report: ParityReport, paths: Paths) -> None:
    if not report.checks:
        where = ", ".join(map(str, paths)) or "no folder is given"
        reasons = report.errors or [note.text for note in report.notes]
        raise UserError("; ".join(reasons) or f"nothing to compare: {where}")


def main(paths: Paths, as_json: bool = False, stream: TextIO | None = None) -> int:
    """Replays bundles, writes the report and returns the exit code (`ParityReport.exit_code`).

    Args:
        paths: the folders with bundles.
        as_json: whether to write one JSON object instead of the table.
        stream: the stream to write to; None: standard output.

    Raises:
        UserError: a path has no bundle, or there is nothing to compare.
    """
    report = replay(paths)
    _refuse_if_empty(report, paths)
    text = json.dumps(to_json(report), indent=1) if as_json else to_text(report)
    (stream or sys.stdout).write(text + "\n")
    return report.exit_code


def to_json(report: ParityReport) -> dict[str, Any]:
    """Converts the report to plain values; numbers that are not finite become strings."""
    return {
        "ok": report.exit_code == 0,
        "checks": [
            {**dataclasses.asdict(check), "error": _plain(check.error), "ok": check.ok}
            | {"tolerance": _plain(check.tolerance)}
            for check in report.checks
        ],
        "notes": [dataclasses.asdict(note) for note in report.notes],
        "errors": report.errors,
    }


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def to_text(report: ParityReport) -> str:
    """Formats the largest error of every quantity as a table, then notes, errors and failed checks.

    >>> check = Check("golden", "goat", "given", "y", 2e-3, 1e-5)
    >>> print(to_text(ParityReport([check], [], [])))
    bundle  start  quantity  cases  max error  closest call  its error  tolerance
    ------  -----  --------  -----  ---------  ------------  ---------  ---------  ------
    golden  given  y             1    2.0e-03  goat            2.0e-03    1.0e-05  FAILED
    <BLANKLINE>
    FAILED golden, goat, given start: y is off by 2.00e-03, tolerance 1.0e-05
    1 of 1 checks is out of tolerance
    """
    lines = [_table(report.checks), ""]
    lines += [f"note: {note.bundle}, {note.case}: {note.text}" for note in report.notes]
    lines += [f"error: {error}" for error in report.errors]
    lines += [_failure(check) for check in report.failed]
    return "\n".join([*lines, _summary(report)])


def _table(checks: Sequence[Check]) -> str:
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.bundle, check.start, check.quantity), []).append(check)
    rows = []
    for group, members in groups.items():
        most = worst(members)
        largest = float(np.max([check.error for check in members]))  # NaN if any is
        numbers = [f"{number:.1e}" for number in (largest, most.error, most.tolerance)]
        verdict = "" if most.ok else "FAILED"
        rows.append([*group, len(members), numbers[0], most.case, *numbers[1:], verdict])
    headers = ["bundle", "start", "quantity", "cases", "max error", "closest call"]
    return render_table([*headers, "its error", "tolerance", ""], rows, "lllrrlrrl")


def _failure(check: Check) -> str:
    where = f" ({check.where})" if check.where else ""
    return (
        f"FAILED {check.bundle}, {check.case}, {check.start} start: {check.quantity}{where} is off "
        f"by {check.error:.2e}, tolerance {check.tolerance:.1e}"
    )


def _summary(report: ParityReport) -> str:
    failed, count = len(report.failed), len(report.checks)
    parts = [
        f"{failed} of {count} checks {'is' if failed == 1 else 'are'} out of tolerance"
        if failed
        else f"{count} checks, all within tolerance"
    ]
    if report.errors:
        parts.append(f"{len(report.errors)} could not be replayed")
    return "; ".join(parts)
