"""Evaluation: the task's metrics over every row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from goat_jax.training.step import EvalStep
from goat_jax.training.task_types import Task, task_type_of
from goat_jax.typing import Batch, PyTree


class Evaluation(NamedTuple):
    """Result of an evaluation.

    Attributes:
        scores: the loss and the task's metrics (`goat_jax.data.metrics`).
        load: module name -> for each layer the fraction of routed tokens per expert, summing to 1.
        seconds: the duration in seconds.
    """

    scores: dict[str, float]
    load: dict[str, list[list[float]]]
    seconds: float


def evaluate(
    eval_step: EvalStep,
    trainable: dict[str, PyTree],
    base: PyTree,
    batches: Sequence[Batch],
    task: Task,
    put: Callable[[Batch], Batch] = lambda batch: batch,
) -> Evaluation:
    """Computes the task's scores and the experts' load over all rows.

    The steps of all batches are dispatched before any result is fetched.

    Args:
        eval_step: the evaluation step, as `training.step.make_eval_step` makes it.
        trainable: the trained arrays.
        base: the frozen arrays.
        batches: the evaluation batches; padding rows have weight 0.
        task: the task, which names the metrics.
        put: a function that moves a batch to the devices (`TrainSetup.put_whole`).
    """
    start = time.perf_counter()
    pending = [(batch, eval_step(trainable, base, put(batch))) for batch in batches]
    totals = {
        name: sum(float(sums[name]) for _, (sums, _) in pending)
        for name in pending[0][1][0]
        if name != "loads"
    }
    outputs = [np.asarray(output) for _, (_, output) in pending]
    scores = task_type_of(task).scores(task, totals, [batch for batch, _ in pending], outputs)
    loads = jax.tree.map(
        lambda *parts: sum(map(np.asarray, parts)), *(s["loads"] for _, (s, _) in pending)
    )
    return Evaluation(
        scores={"loss": totals["loss"] / totals["count"], **scores},
        load={name: _shares(load).tolist() for name, load in loads.items()},
        seconds=time.perf_counter() - start,
    )


def _shares(load: np.ndarray) -> np.ndarray:
    """Returns loads (..., E) as shares; zeros where no token came, as to an expert of a mixture."""
    total = load.sum(-1, keepdims=True)
    return load / np.where(total > 0, total, 1)
