"""Evaluation: every row once, the task's metrics over all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from goat_jax.data.metrics import score
from goat_jax.run.step import EvalStep
from goat_jax.typing import Batch, PyTree


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        scores: loss and the named metrics (`goat_jax.data.metrics`).
        load: name -> per layer the share of routed tokens per expert, summing to 1.
        seconds: how long it took.
    """

    scores: dict[str, float]
    load: dict[str, list[list[float]]]
    seconds: float


def evaluate(
    eval_step: EvalStep,
    trainable: dict[str, PyTree],
    base: PyTree,
    batches: Sequence[Batch],
    metrics: Sequence[str],
) -> Evaluation:
    """The task's scores and the experts' load over all rows.

    Steps are dispatched for all batches before any result is fetched.
    """
    start = time.perf_counter()
    pending = [(batch, eval_step(trainable, base, batch)) for batch in batches]
    loss = sum(float(sums["loss"]) for _, (sums, _) in pending)
    count = sum(float(sums["count"]) for _, (sums, _) in pending)
    weights = np.concatenate([np.asarray(batch["weights"]) for batch, _ in pending])
    labels = np.concatenate([np.asarray(batch["labels"]) for batch, _ in pending])
    outputs = np.concatenate([np.asarray(logits) for _, (_, logits) in pending])
    predictions = outputs[:, 0] if outputs.shape[-1] == 1 else outputs.argmax(-1)
    scores = score(metrics, predictions, labels, weights)
    loads = jax.tree.map(
        lambda *parts: sum(map(np.asarray, parts)), *(s["loads"] for _, (s, _) in pending)
    )
    return Evaluation(
        scores={"loss": loss / count, **scores},
        load={name: (load / load.sum(-1, keepdims=True)).tolist() for name, load in loads.items()},
        seconds=time.perf_counter() - start,
    )
