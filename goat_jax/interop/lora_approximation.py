"""Approximates routed experts by one plain LoRA: every expert with a constant weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx

from goat_jax.interop import merged
from goat_jax.interop.low_rank import LowRank, truncated
from goat_jax.interop.router_weights import ConstantGates
from goat_jax.interop.trained_run import Gates, Trained
from goat_jax.nn.dense import split_model
from goat_jax.training.evaluate import evaluate
from goat_jax.training.step import make_eval_step
from goat_jax.training.task_types import task_type_of

BEST = "best"
GATES = (BEST, *ConstantGates._fields)
"""Choices of the constant weights of a plain LoRA."""


class Approximation(NamedTuple):
    """Plain LoRA in place of routed experts.

    Attributes:
        kind: how the constant weights were found, of `GATES` without "best".
        gates: module -> its experts' weights.
        adapters: module -> the adapter with these weights.
        scores: kind of weights -> metric -> value on the run's evaluation rows.
    """

    kind: str
    gates: Gates
    adapters: Mapping[str, LowRank]
    scores: Mapping[str, Mapping[str, float]]


def approximate(run: Trained, rows: int, gates: str, rank: int | None) -> Approximation:
    """Finds the experts' constant weights, and scores the model with each kind of them.

    Args:
        run: the run.
        rows: the number of training rows that the weights are measured on.
        gates: the kind of weights, of `GATES`; "best" is the one with the lower loss.
        rank: the largest rank of an adapter; None: that of all experts side by side.
    """
    measured = run.constant_gates(rows)._asdict()
    exact = {kind: run.low_rank(weights) for kind, weights in measured.items()}
    adapters = {
        kind: {name: each if rank is None else truncated(each, rank) for name, each in full.items()}
        for kind, full in exact.items()
    }
    scores = {
        kind: _scores_with(run, weights, exact[kind], adapters[kind])
        for kind, weights in measured.items()
    }
    if gates == BEST:
        gates = min(scores, key=lambda kind: scores[kind]["loss"])
    return Approximation(gates, measured[gates], adapters[gates], scores)


def _scores_with(
    run: Trained,
    gates: Mapping[str, np.ndarray],
    exact: Mapping[str, LowRank],
    written: Mapping[str, LowRank],
) -> dict[str, float]:
    """Returns the scores of a run's model with constant weights, as a folder holds them.

    Args:
        run: the run.
        gates: module -> its experts' weights.
        exact: module -> the adapter with these weights.
        written: module -> the adapter that is written: the same, or one of a lower rank.
    """
    model = nnx.clone(run.model)
    merged.fold_adapters(model, gates)
    lost = {
        name: _product(written[name]) - _product(each)
        for name, each in exact.items()
        if written[name] is not each
    }
    merged.add_to_kernels(model, lost)
    graph, trainable, base = split_model(model)
    step = make_eval_step(graph, task_type_of(run.task).loss_fn(run.task))
    return evaluate(step, trainable, base, run.rows, run.task).scores


def _product(adapter: LowRank) -> np.ndarray:
    return adapter.scale * (adapter.a @ adapter.b)
