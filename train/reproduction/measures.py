"""The ways to fill cells of the paper's tables: scores of a trained run, expert load, cost."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from goat_jax.analysis.collect_runs import gather
from goat_jax.analysis.figure_data import mean_load
from goat_jax.analysis.result_files import Key, keep_scores, kept_scores
from goat_jax.bench.steps import measure_steps
from goat_jax.cli.verbs.train import draw
from goat_jax.config.memory import device_memory
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.evaluation import EvalTask, named_by_set
from goat_jax.errors import RunFailed
from goat_jax.evaluation.evaluate_lm import check_needs, evaluate_task, write_records
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.types import CUT_ANSWERS, EvalOptions
from goat_jax.hardware.topologies import Topology
from goat_jax.planning.plan import plan
from goat_jax.training.trainer import fit

Scores = Mapping[str, float] | None
"""Scores by name; None if the run was stopped."""


def trained_scores(config: RunConfig, options: EvalOptions, progress: bool) -> Scores:
    """Returns the scores of a run at its last step; it is trained now unless it is finished.

    Args:
        config: the run's config.
        options: the evaluation options of a task with questions.
        progress: whether to draw a progress bar.

    Raises:
        UserError: an error of `fit` or `evaluate_task`, or a kept result of other settings.
        RunFailed: a run that failed in `fit` or `evaluate_task`.
    """
    folder, task = Path(config.out), config.task
    questions = isinstance(task, EvalTask)
    key = Key.of(config, options if questions else None)
    kept, changed = kept_scores(folder, key)
    if kept is not None:
        return kept
    if changed:
        print(f"{folder.name}: {', '.join(changed[:3])} changed: evaluated again", file=sys.stderr)
    if questions:
        check_needs(task, task.scoring, options)
    summary = fit(config, progress=progress)
    if summary.stopped.startswith("SIG"):
        return None
    draw(folder)
    scores = _answers(folder, summary.step, task, options) if questions else summary.after
    keep_scores(folder, key, scores, notes=summary.notes)
    jax.clear_caches()  # the next run compiles other programs; these only take memory
    return scores


def _answers(folder: Path, step: int, task: EvalTask, options: EvalOptions) -> dict[str, float]:
    model, where = load_eval_model(str(folder), step), folder / "evaluation"
    found = evaluate_task(model, task, task.scoring, options, folder=where)
    write_records(where, task.name, task.scoring, found)
    if found.problem:
        raise RunFailed(found.problem)
    if CUT_ANSWERS in found.scores:
        said = f"{found.scores[CUT_ANSWERS]:.1%} of the answers were cut at --max-new-tokens"
        print(f"{folder.name}: {said}", file=sys.stderr)
    return named_by_set(found.scores, task.questions)


def expert_load(config: RunConfig, options: EvalOptions, progress: bool) -> Scores:
    """Returns each expert's share of the tokens after training, averaged over all layers.

    Takes the arguments of `trained_scores` and raises the same errors.
    """
    if trained_scores(config, options, progress) is None:
        return None
    load = gather([Path(config.out)])[0].last("load")
    rows = mean_load(load) if load else []
    shares = np.mean(rows, axis=0).tolist() if rows else []
    return {f"load/{number}": share for number, share in enumerate(shares, 1)}


def cost(config: RunConfig, options: EvalOptions, progress: bool) -> Scores:
    """Returns the peak memory of a training step and the time of an epoch, on this device.

    The weights are random, and the rows have the greatest length: both numbers are upper bounds. A
    step that does not fit into the device's memory is not run, so its time is left out.

    Args:
        config: the run's config; its task has a `train_limit`, the rows of an epoch.
        options: not used.
        progress: not used.

    Raises:
        UserError: a kept result of other settings.
    """
    del options, progress
    folder, key = Path(config.out), Key.of(config)
    kept, _ = kept_scores(folder, key)
    if kept is not None:
        return kept
    device = jax.devices()[0]
    peak = plan(config, Topology(device.device_kind, [device], None)).peak
    scores = {"memory": peak / 2**30}
    if peak <= device_memory():
        (step,) = measure_steps({config.adapter.method: config}, turns=3).measured
        steps = -(-(config.task.train_limit or 1) // config.train.batch_size)
        scores["hours"] = steps * step.seconds / 3600
    folder.mkdir(parents=True, exist_ok=True)
    keep_scores(folder, key, scores, notes=[f"measured on {device.device_kind}"])
    jax.clear_caches()
    return scores
