"""LoRAHub: combines trained runs of one model for a new task, using a few of its rows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.lorahub import combine_adapters, penalty, search
from goat_jax.config.run import RunConfig
from goat_jax.errors import RunFailed, UserError
from goat_jax.training.checkpoints.restore import Reopened, restore_run
from goat_jax.training.data import evaluation_batches, load_rows, training_batches
from goat_jax.training.evaluate import evaluate
from goat_jax.typing import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Composition:
    """Result of a search for coefficients.

    Attributes:
        coefficients: the coefficient of each run.
        few_shot_loss: the loss on the rows of the search, penalty included.
        trainable: the combined adapters (and heads).
        scores: the combination's scores on the task's evaluation rows.
        alone: the scores of each run by itself.
    """

    coefficients: tuple[float, ...]
    few_shot_loss: float
    trainable: PyTree
    scores: dict[str, float]
    alone: tuple[dict[str, float], ...]


def compose(
    config: RunConfig,
    runs: Sequence[Path],
    *,
    rows: int = 16,
    budget: int = 40,
    weight: float = 0.05,
) -> Composition:
    """Searches for coefficients of the runs' adapters that suit a task, without gradients.

    Args:
        config: the config of the new task; its model and adapter must be those of the runs.
        runs: the run folders; each run's best checkpoint is used.
        rows: the number of training rows used by the search, the first in the seed's order.
        budget: the number of evaluations on these rows.
        weight: the weight of the penalty on the coefficients' size.

    Raises:
        UserError: fewer than two runs, runs of another base model, or adapters of other shapes.
        RunFailed: no coefficients give a finite loss.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} runs are given: LoRAHub combines two or more")
    config.adapter.spec()  # an unknown method fails before any run is restored
    opened = [restore_run(folder, None) for folder in runs]
    _check_one_base(runs, opened)
    setup = opened[0].setup
    trees = [run.state.trainable for run in opened]
    batches = few_rows(config, rows)

    def loss_of(trainable: PyTree) -> float:
        sums = [setup.eval_step(trainable, setup.base, batch)[0] for batch in batches]
        return sum(float(s["loss"]) for s in sums) / sum(float(s["count"]) for s in sums)

    def loss_fn(coefficients: np.ndarray) -> float:
        c = jnp.asarray(coefficients, jnp.float32)
        return loss_of(_combined(trees, c)) + float(penalty(c, weight))

    key = jax.random.key(config.train.seed)
    best, loss = search(loss_fn, len(runs), key, budget=budget)
    if not math.isfinite(loss):
        raise RunFailed(
            "no coefficients give a finite loss on these rows: check the losses of the runs"
        )
    combined = _combined(trees, jnp.asarray(best, jnp.float32))
    held_out = evaluation_batches(config, load_rows(config, "evaluation")[0])
    scores = [
        evaluate(setup.eval_step, trainable, setup.base, held_out, config.task).scores
        for trainable in (combined, *trees)
    ]
    return Composition(tuple(map(float, best)), loss, combined, scores[0], tuple(scores[1:]))


def few_rows(config: RunConfig, rows: int) -> list[Batch]:
    """Returns the first training rows in the order of the config's seed, in batches.

    A batch has at most `rows` rows; a last incomplete batch is left out.
    """
    train = load_rows(config, "train")[0]
    size = min(rows, config.train.batch_size)
    sized = dataclasses.replace(config.train, batch_size=size, grad_accum_steps=1)
    batches = training_batches(dataclasses.replace(config, train=sized), train)
    return list(itertools.islice(batches, max(1, rows // size)))


def _check_one_base(runs: Sequence[Path], opened: Sequence[Reopened]) -> None:
    """Raises `UserError` unless all runs have the same frozen kernels.

    The adapters' products can be added up only on one frozen kernel.
    """
    first = opened[0].setup
    for folder, run in zip(runs, opened, strict=True):
        same = run.setup.base_fingerprint == first.base_fingerprint
        if not same or run.setup.residual_norms != first.residual_norms:
            raise UserError(
                f"{folder} and {runs[0]} have different frozen kernels: LoRAHub combines runs of "
                "one method without a residual (lora, rslora) on one model"
            )


@jax.jit
def _combined(trees: list[PyTree], coefficients: Array) -> PyTree:
    return combine_adapters(trees, coefficients)
