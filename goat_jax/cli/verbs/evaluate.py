"""``goat-jax evaluate``: scores a run or a language model on its task or on evaluation tasks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from goat_jax.cli.arguments.evaluation import options_of
from goat_jax.cli.arguments.words import flag_of
from goat_jax.cli.verbs.lm_eval import evaluate_with_lm_eval
from goat_jax.config.files import parse_options
from goat_jax.data.tasks.evaluation import LOSS, EvalTask, scoring_of
from goat_jax.data.tasks.registry import Task, make_task
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.evaluate_lm import check_needs, evaluate_task, write_records
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.types import CUT_ANSWERS
from goat_jax.files import user_path
from goat_jax.inference.output_file import check_out
from goat_jax.inference.predict_file import predict_to_file
from goat_jax.inference.predictors import labeled_rows
from goat_jax.inference.trained_run import TrainedRun
from goat_jax.pretrained.resolve import PACKAGE
from goat_jax.sharding.config import MeshConfig
from goat_jax.text_tables import render_table
from goat_jax.training.checkpoints.restore import ONE_DEVICE
from goat_jax.training.checkpoints.run_dir import RUN, load_run
from goat_jax.training.data import evaluation_batches, load_rows
from goat_jax.training.evaluate import evaluate as score
from goat_jax.training.logging.progress_bar import TrainProgress

EVALUATION = "evaluation"
"""Folder of the predictions, inside the run folder or, for a model, the current one; ``--out``
names another."""


OF_EXAMS = ("limit", "max_new_tokens", "temperature", "judge", "judge_key")
"""Arguments of evaluation tasks only: they have no effect where a run is scored by its loss."""

OF_THE_HARNESS = ("task_files", "num_fewshot", "chat_template", "cache")
"""Arguments of ``--harness`` only."""


def evaluate(arguments: argparse.Namespace) -> int:
    """Prints the scores of a run or a model; for evaluation tasks, also writes the predictions.

    Args:
        arguments: the parsed arguments of ``goat-jax evaluate``.

    Returns:
        The exit code.

    Raises:
        UserError: arguments that do not fit the source or its task.
        RunFailed: an evaluation that could not be completed.
    """
    is_run = (Path(arguments.source) / RUN).is_file()
    out = arguments.out or (Path(arguments.source) / EVALUATION if is_run else Path(EVALUATION))
    if arguments.harness is not None:
        for model, task, scores, paths in evaluate_with_lm_eval(arguments, out):
            _print_scores(model, task, arguments.harness, scores, paths, arguments.json)
        return 0
    for name in OF_THE_HARNESS:
        if getattr(arguments, name):
            raise UserError(f"{flag_of(name)} is only for --harness lm-eval")
    tasks = [_task_of(text) for text in arguments.task]
    if not tasks:
        tasks = [_task_of_run(arguments.source)]
    mesh = MeshConfig(tensor=arguments.tensor)
    scorings = [scoring_of(task, arguments.scoring) for task in tasks]
    if LOSS in scorings:
        if arguments.task or not is_run:
            raise UserError(
                f"--scoring {LOSS} is only for a run on the task it was trained on: "
                f"{arguments.source} with --task needs another scoring method"
            )
        for name in OF_EXAMS:
            if getattr(arguments, name) is not None:
                raise UserError(
                    f"{flag_of(name)} is only for eval tasks: {arguments.source} is scored by "
                    f"{LOSS}"
                )
        return _print_loss(arguments, mesh)
    options = options_of(arguments)
    eval_tasks = []
    for task, scoring in zip(tasks, scorings, strict=True):
        assert isinstance(task, EvalTask)  # `scoring_of` returns LOSS for all other tasks
        eval_task = _with_rows(task, arguments.data, arguments.limit)
        check_needs(eval_task, scoring, options)
        eval_tasks.append((eval_task, scoring))
    model = load_eval_model(arguments.source, arguments.step, arguments.dtype, mesh)
    problems = []
    for task, scoring in eval_tasks:
        with _EvaluationBar(not arguments.quiet) as bar:
            result = evaluate_task(model, task, scoring, options, bar, out)
        paths = write_records(out, task.name, scoring, result)
        _print_scores(model, task.name, scoring, result.scores, paths, arguments.json)
        problems += [result.problem] if result.problem else []
    if problems:
        raise RunFailed("; ".join(problems))
    return 0


def _task_of(text: str) -> Task:
    name, _, options = text.partition(":")
    return make_task(name, **parse_options(options))


def _task_of_run(source: str) -> Task:
    if not (Path(source) / RUN).is_file():
        if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
            raise UserError(f"{source} is not a run folder: it has no {RUN}")
        if not Path(source).exists() and not source.startswith(PACKAGE):
            raise UserError(
                f"{source} does not exist here: give a run folder, or a model and its --task"
            )
        raise UserError(f"{source} is a model, which has no task of its own: give one with --task")
    return load_run(Path(source))[0].task


def _with_rows(task: EvalTask, data: str | None, limit: int | None) -> EvalTask:
    """Returns the task with other questions, or with fewer."""
    changes: dict[str, Any] = {}
    if data is not None:
        changes["questions"] = {"data": data}
    if limit is not None:
        changes["question_limit"] = limit
    return dataclasses.replace(task, **changes)


class _EvaluationBar:
    """Progress bar of an evaluation, whose length is known only when it begins."""

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._progress: TrainProgress | None = None
        self._done = 0

    def __enter__(self) -> _EvaluationBar:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop()

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None or done < self._done:  # a second pass: answers, then grades
            self._stop()
            self._progress = TrainProgress(total, enabled=self._enabled)
            self._progress.__enter__()
        self._done = done
        self._progress.update(done)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)


class _Named(Protocol):
    """A model that was evaluated.

    Attributes:
        name: the name of the run's folder or of the model.
        step: the checkpoint's step; None for a pretrained model.
    """

    @property
    def name(self) -> str: ...

    @property
    def step(self) -> int | None: ...


def _print_scores(
    model: _Named,
    task: str,
    scoring: str,
    scores: Mapping[str, float],
    paths: list[Path],
    as_json: bool,
) -> None:
    if as_json:
        about = {"source": model.name, "step": model.step, "task": task, "scoring": scoring}
        print(json.dumps(about | {"scores": scores, "files": list(map(str, paths))}), flush=True)
        return
    where = model.name if model.step is None else f"{model.name}, step {model.step}"
    rows = [[name, f"{value:.4f}"] for name, value in scores.items()]
    print(render_table([f"{task} by {scoring} ({where})", "score"], rows, align="lr"))
    if CUT_ANSWERS in scores:
        print(f"{scores[CUT_ANSWERS]:.1%} of the answers were cut off at --max-new-tokens")
    print(f"written: {', '.join(map(str, paths))}", flush=True)


def _print_loss(arguments: argparse.Namespace, mesh: MeshConfig) -> int:
    progress = not arguments.quiet
    out = None if arguments.out is None else user_path(arguments.out)
    scores, step = evaluate_run(
        Path(arguments.source), arguments.step, arguments.data, mesh, out, progress
    )
    if arguments.json:
        print(json.dumps({"step": step, **scores}))
        return 0
    print(render_table(["step", *scores], [[step, *(f"{s:.4f}" for s in scores.values())]]))
    if out is not None:
        print(f"written: {out}")
    return 0


def evaluate_run(
    folder: Path,
    step: int | None,
    data: str | None,
    mesh: MeshConfig = ONE_DEVICE,
    out: Path | None = None,
    progress: bool = False,
) -> tuple[dict[str, float], int]:
    """Returns a checkpoint's scores on the evaluation rows of its task, and the checkpoint's step.

    Args:
        folder: the run folder.
        step: the checkpoint's step; None for the best checkpoint.
        data: a source of rows to use instead of the task's evaluation rows.
        mesh: the mesh that the model is placed on.
        out: the file that each row is written to with its label and prediction; None for none.
        progress: whether to draw a progress bar while it is written.

    Raises:
        UserError: rows without labels, or a file that cannot be written.
        RunFailed: a score that is not finite.
    """
    run = TrainedRun(folder, step, mesh)
    if data is not None:
        changes = {"evaluation": data, "evaluation_limit": None, "held_out": 0}
        task = dataclasses.replace(run.config.task, **changes)
        run.config = dataclasses.replace(run.config, task=task)
    config, labeled = run.config, []
    if out is not None:
        check_out(out)
        labeled = labeled_rows(config.task)
    rows = load_rows(config, "evaluation")[0]
    trained = run.trained
    result = score(
        trained.setup.eval_step,
        trained.trainable,
        trained.base,
        evaluation_batches(config, rows),
        config.task,
        put=trained.setup.put_whole,
    )
    for name, value in result.scores.items():
        if not math.isfinite(value):
            raise RunFailed(
                f"step {run.step} of {folder}: the {name} of the held-out rows is {value}"
            )
    if out is not None:
        with TrainProgress(len(labeled), enabled=progress) as bar:
            predict_to_file(run, labeled, rows, out, progress=bar.update)
    return result.scores, run.step
