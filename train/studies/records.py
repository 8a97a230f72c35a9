"""Results of the study in the form that is kept: one small file for each task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from goat_jax.analysis.run_results import read_results, result_of
from goat_jax.errors import UserError
from goat_jax.files import read_json, write_whole
from goat_jax.training.vmapped_runs import RunResult
from studies.runs import CHOOSING, EQUAL, TEST, result_file
from studies.tasks import METHODS, TASKS

Stages = Mapping[str, Sequence[RunResult]]
"""Stage -> the results of a method's runs."""
Records = Mapping[str, Mapping[str, Stages]]
"""Task -> method -> stages. Tasks and methods without results are left out."""

DIGITS = 5
"""Significant digits of the losses that are kept."""


def collect(out: Path) -> Records:
    """Reads the results that the study's runs have so far, in the order of `TASKS`."""
    found = {
        task: {method: stages for method in METHODS if (stages := _stages(out / task, method))}
        for task in TASKS
    }
    return {task: methods for task, methods in found.items() if methods}


def _stages(folder: Path, method: str) -> Stages:
    files = {stage: result_file(folder, method, stage) for stage in (CHOOSING, TEST, EQUAL)}
    return {stage: read_results(file) for stage, file in files.items() if file.is_file()}


def keep(records: Records, folder: Path) -> None:
    """Writes one file for each task. Only the losses of the runs on the test rows are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, methods in records.items():
        lines = [f"{json.dumps(method)}: {_json(stages)}" for method, stages in methods.items()]
        write_whole(folder / f"{task}.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _json(stages: Stages) -> str:
    short = {stage: list(_short(stage, results)) for stage, results in stages.items()}
    return json.dumps(short, allow_nan=False)


def _short(stage: str, results: Sequence[RunResult]) -> Iterator[dict]:
    for result in results:
        losses = [float(f"{loss:.{DIGITS}g}") for loss in result.losses] if stage == TEST else []
        yield dataclasses.asdict(dataclasses.replace(result, losses=tuple(losses)))


def read(folder: Path) -> Records:
    """Reads what `keep` wrote.

    Raises:
        UserError: a folder without records.
    """
    records = {
        task: {
            method: {stage: [result_of(run) for run in runs] for stage, runs in stages.items()}
            for method, stages in read_json(folder / f"{task}.json").items()
        }
        for task in TASKS
        if (folder / f"{task}.json").is_file()
    }
    if not records:
        raise UserError(f"{folder} has no records of the study: run `python train/study.py run`")
    return records
