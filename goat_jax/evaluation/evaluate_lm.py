"""Evaluates a model on an eval task with one of its scoring methods and writes the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from goat_jax.data.tasks.evaluation import (
    CODE,
    GENERATE,
    JUDGE,
    LIKELIHOOD,
    EvalTask,
    load_questions,
)
from goat_jax.evaluation.code import check_programs, examine_by_tests
from goat_jax.evaluation.generate_and_loglikelihood import examine_by_answer, examine_by_likelihood
from goat_jax.evaluation.journal import NOTHING_KEPT, Journal
from goat_jax.evaluation.judge_client import check_judge
from goat_jax.evaluation.llm_judge import examine_by_judge
from goat_jax.evaluation.model import Subject
from goat_jax.evaluation.types import Examination, ExamOptions, Progress, Sitting
from goat_jax.files import write_whole

WAYS: dict[str, Callable[[Sitting], Examination]] = {
    GENERATE: examine_by_answer,
    LIKELIHOOD: examine_by_likelihood,
    CODE: examine_by_tests,
    JUDGE: examine_by_judge,
}
"""Scoring method -> the function that runs it."""

NEEDS: dict[str, Callable[[EvalTask, ExamOptions], None]] = {
    CODE: lambda task, options: check_programs(task, options),
    JUDGE: lambda task, options: None if options.judge is None else check_judge(options.judge),
}
"""Scoring method -> the check of its requirements besides a model and questions."""


def check_needs(task: EvalTask, way: str, options: ExamOptions) -> None:
    """Checks a scoring method's requirements before the model is loaded or trained.

    Loading and training may take long, so a missing requirement should fail first.

    Raises:
        UserError: the task has no such scoring method, or the options lack what it needs.
        RunFailed: the judge does not answer.
    """
    task.check_way(way)
    if way in NEEDS:
        NEEDS[way](task, options)


def examine(
    subject: Subject,
    task: EvalTask,
    way: str,
    options: ExamOptions,
    progress: Progress = lambda done, total: None,
    folder: Path | None = None,
) -> Examination:
    """Runs one evaluation and returns its scores and records.

    Args:
        subject: the model to evaluate.
        task: the eval task.
        way: the scoring method, a key of `WAYS`.
        options: the settings of the evaluation.
        progress: a function that is called with the number of finished items and the total.
        folder: the folder that the records will be written to. Answers and grades are saved there
            as they arrive, so that a killed evaluation can continue. None saves nothing.

    Raises:
        UserError: the task has no such scoring method, or its questions cannot be read.
    """
    task.check_way(way)
    journal = NOTHING_KEPT
    if folder is not None:
        journal = Journal(_journal(folder, task.name, way), subject.digest())
    return WAYS[way](Sitting(subject, task, load_questions(task), options, progress, journal))


def write_records(folder: Path, task: str, way: str, found: Examination) -> list[Path]:
    """Writes `TASK-WAY-NAME.jsonl` for each kind of record and a file with the scores.

    Each file is written under another name and then renamed, so an older file stays complete until
    it is replaced. The journal of partial results is then removed, unless the evaluation ended
    with a problem: the next attempt continues from it.

    Returns:
        The paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, lines in found.records.items():
        paths.append(folder / f"{task}-{way}-{name}.jsonl")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(paths[-1], text)
    paths.append(folder / f"{task}-{way}-scores.json")
    write_whole(paths[-1], json.dumps(found.scores, indent=1) + "\n")
    if not found.problem:
        _journal(folder, task, way).unlink(missing_ok=True)
    return paths


def _journal(folder: Path, task: str, way: str) -> Path:
    return folder / f"{task}-{way}-so-far.jsonl"
