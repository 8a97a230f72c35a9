"""Methods x seeds of one table of exams: what ``train/commonsense.py`` and its like run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from goat_jax.commands.configs import read_config, with_adapter
from goat_jax.commands.exam_arguments import add_options, options_of
from goat_jax.commands.labels import Label, add_arguments, options_by_part
from goat_jax.commands.paper_table import Cell, Scores, conclude, render
from goat_jax.commands.train import draw
from goat_jax.config import RunConfig
from goat_jax.data.exams import ExamTask
from goat_jax.errors import RunFailed, UserError
from goat_jax.run.examination import ExamOptions
from goat_jax.run.examine import examine, write_records
from goat_jax.run.fit import fit
from goat_jax.run.folder import RESULT, write_aside
from goat_jax.run.subject import open_subject


@dataclasses.dataclass(frozen=True)
class ExamRun:
    """One training run of a method, which fills one or several columns.

    Attributes:
        config: the config file, whose options have method and seed.
        columns: column of the table -> the score that it shows.
        factor: of the scores: 100 for shares.
    """

    config: Path
    columns: Mapping[str, str]
    factor: float = 100.0

    def source(self, label: Label, seed: int, options: str = "") -> str:
        """The config file with the options of one run."""
        own = f"{self.config}:{label.options},seed={seed}"
        return f"{own},{options}" if options else own


@dataclasses.dataclass(frozen=True)
class ExamSweep:
    """One table.

    Attributes:
        runs: name of a run -> what it is.
        paper: method -> column -> score.
        name: of the program and of the folder of runs.
    """

    runs: Mapping[str, ExamRun]
    paper: Scores
    name: str


def main(sweep: ExamSweep, arguments: Sequence[str] | None = None) -> int:
    """Runs what is not done, then prints the table; 0, 1 if a run failed, 143 if it was stopped."""
    parser = argparse.ArgumentParser(
        prog=sweep.name,
        allow_abbrev=False,
        description="Trains and examines every method; what is done is not done again. Fields of "
        "the runs can be overridden: --model.path FOLDER, --train.steps 100, ...",
    )
    parser.add_argument("--runs", nargs="+", default=list(sweep.runs), choices=list(sweep.runs))
    add_arguments(parser, sweep.paper, sweep.name)
    add_options(parser)
    given, overrides = parser.parse_known_args(arguments)
    options = options_of(given)
    of_run = options_by_part(given.options, list(sweep.runs), parser)
    found: dict[Cell, float] = {}
    problems = []
    for seed in given.seeds:
        for name in given.runs:
            for label in given.methods:
                run, folder = sweep.runs[name], given.out / f"{name}-{label.name}-seed{seed}"
                source = run.source(label, seed, of_run[name])
                try:
                    scores = run_one(source, overrides, label, folder, options, not given.quiet)
                except (UserError, RunFailed) as error:
                    problems.append(f"{folder.name}: {error}")
                    continue
                if scores is None:
                    print(f"stopped in {folder.name}; the same command continues", file=sys.stderr)
                    return 143
                for column, score in run.columns.items():
                    if score in scores:  # a grade that no judge gave is not there
                        found[Cell(column, label.text, seed)] = run.factor * scores[score]
    columns = [column for name in given.runs for column in sweep.runs[name].columns]
    table = render(sweep.paper, found, columns, [label.text for label in given.methods])
    conclude(given.out, table, [f"not done: {problem}" for problem in problems])
    return 1 if problems else 0


def config_of(source: str, overrides: Sequence[str], label: Label, prog: str) -> RunConfig:
    """The config of one run, with the adapter's options of its label."""
    return with_adapter(read_config(source, overrides, prog), label.adapter)


def run_one(
    source: str,
    overrides: list[str],
    label: Label,
    folder: Path,
    options: ExamOptions,
    progress: bool,
) -> dict[str, float] | None:
    """The scores of one run, trained and examined now if it is not done; None if it was stopped.

    Raises:
        UserError, RunFailed: as `fit` and `examine`; a result of other settings.
    """
    settings = {"source": source, "overrides": overrides}
    settings |= {"adapter": label.adapter} if label.adapter else {}
    path = folder / RESULT
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["settings"] != settings:
            raise UserError(f"{folder} has a result of other settings: choose another --out")
        return saved["scores"]
    config = config_of(source, overrides, label, folder.name)
    config = dataclasses.replace(config, out=str(folder))
    task = config.task
    if not isinstance(task, ExamTask):
        raise UserError(f"{source}: task {task.name} has no exam")
    summary = fit(config, progress=progress)
    if summary.stopped.startswith("SIG"):
        return None
    draw(folder)
    found = examine(open_subject(str(folder), summary.step), task, task.way, options)
    write_records(folder / "evaluation", task.name, task.way, found)
    result = {"settings": settings, "scores": found.scores, "notes": summary.notes}
    write_aside(path, json.dumps(result, indent=1) + "\n")
    jax.clear_caches()  # the next run has a model of its own
    return found.scores
