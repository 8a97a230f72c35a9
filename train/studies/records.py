"""Results of the study in the form that is kept: one small file for each task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from goat_jax.analysis.run_results import read_results, result_of
from goat_jax.files import read_json, write_whole
from goat_jax.training.vmapped_runs import RunResult
from studies.runs import STAGES, TEST, Stages, result_file
from studies.tasks import TASKS

Records = Mapping[str, Mapping[str, Stages]]
"""Task -> method -> stages. Tasks and methods without results are left out."""

DIGITS = 5
"""Significant digits of the losses that are kept."""


def collect(out: Path) -> Records:
    """Reads the results that the study's runs have so far, in the order of `TASKS`."""
    found = {
        name: {m: stages for m in task.methods() if (stages := _stages(out / name, m))}
        for name, task in TASKS.items()
    }
    return {task: methods for task, methods in found.items() if methods}


def _stages(folder: Path, method: str) -> Stages:
    files = {stage: result_file(folder, method, stage) for stage in STAGES}
    return {stage: read_results(file) for stage, file in files.items() if file.is_file()}


def merged(old: Records, new: Records) -> Records:
    """Adds new results to old ones, in the order of `TASKS` and their methods.

    A stage of a method is replaced by new results if these are at least as many.
    """
    found = {}
    for name, task in TASKS.items():
        before, after = old.get(name, {}), new.get(name, {})
        methods = [method for method in task.methods() if method in {**before, **after}]
        if methods:
            found[name] = {m: _fuller(before.get(m, {}), after.get(m, {})) for m in methods}
    return found


def _fuller(old: Stages, new: Stages) -> Stages:
    both = {stage: max(new.get(stage, ()), old.get(stage, ()), key=len) for stage in STAGES}
    return {stage: results for stage, results in both.items() if results}


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


def kept(folder: Path) -> Records:
    """Reads what `keep` wrote; empty without it."""
    files = {task: folder / f"{task}.json" for task in TASKS}
    return {
        task: {
            method: {stage: [result_of(run) for run in runs] for stage, runs in stages.items()}
            for method, stages in read_json(file).items()
        }
        for task, file in files.items()
        if file.is_file()
    }
