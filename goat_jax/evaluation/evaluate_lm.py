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
from goat_jax.evaluation.code import check_programs, score_by_tests
from goat_jax.evaluation.generate_and_loglikelihood import score_by_answer, score_by_likelihood
from goat_jax.evaluation.journal import NOTHING_KEPT, Journal
from goat_jax.evaluation.judge_client import check_judge
from goat_jax.evaluation.llm_judge import score_by_judge
from goat_jax.evaluation.model import EvalModel
from goat_jax.evaluation.types import EvalOptions, EvalRequest, EvalResult, Progress
from goat_jax.files import write_whole

SCORERS: dict[str, Callable[[EvalRequest], EvalResult]] = {
    GENERATE: score_by_answer,
    LIKELIHOOD: score_by_likelihood,
    CODE: score_by_tests,
    JUDGE: score_by_judge,
}
"""Scoring method -> the function that runs it."""

NEEDS: dict[str, Callable[[EvalTask, EvalOptions], None]] = {
    CODE: lambda task, options: check_programs(task, options),
    JUDGE: lambda task, options: None if options.judge is None else check_judge(options.judge),
}
"""Scoring method -> the check of its requirements besides a model and questions."""


def check_needs(task: EvalTask, scoring: str, options: EvalOptions) -> None:
    """Checks a scoring method's requirements before the model is loaded or trained.

    Loading and training may take long, so a missing requirement should fail first.

    Raises:
        UserError: the task has no such scoring method, or the options lack what it needs.
        RunFailed: the judge does not answer.
    """
    task.checked_scoring(scoring)
    if scoring in NEEDS:
        NEEDS[scoring](task, options)


def evaluate_task(
    model: EvalModel,
    task: EvalTask,
    scoring: str,
    options: EvalOptions,
    progress: Progress = lambda done, total: None,
    folder: Path | None = None,
) -> EvalResult:
    """Runs one evaluation and returns its scores and records.

    Args:
        model: the model to evaluate.
        task: the eval task.
        scoring: the scoring method, a key of `SCORERS`.
        options: the settings of the evaluation.
        progress: a function that is called with the number of finished items and the total.
        folder: the folder that the records will be written to. Answers and grades are saved there
            as they arrive, so that a killed evaluation can continue. None saves nothing.

    Raises:
        UserError: the task has no such scoring method, or its questions cannot be read.
    """
    task.checked_scoring(scoring)
    journal = NOTHING_KEPT
    if folder is not None:
        journal = Journal(_journal(folder, task.name, scoring), model.digest())
    return SCORERS[scoring](
        EvalRequest(model, task, load_questions(task), options, progress, journal)
    )


def write_records(folder: Path, task: str, scoring: str, result: EvalResult) -> list[Path]:
    """Writes `TASK-WAY-NAME.jsonl` for each kind of record and a file with the scores.

    Each file is written under another name and then renamed, so an older file stays complete until
    it is replaced. The journal of partial results is then removed, unless the evaluation ended
    with a problem: the next attempt continues from it.

    Returns:
        The paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, lines in result.records.items():
        paths.append(folder / f"{task}-{scoring}-{name}.jsonl")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(paths[-1], text)
    paths.append(folder / f"{task}-{scoring}-scores.json")
    write_whole(paths[-1], json.dumps(result.scores, indent=1) + "\n")
    if not result.problem:
        _journal(folder, task, scoring).unlink(missing_ok=True)
    return paths


def _journal(folder: Path, task: str, scoring: str) -> Path:
    return folder / f"{task}-{scoring}-so-far.jsonl"
