"""Mean router weight of every expert on a run's data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.errors import UserError
from goat_jax.nn.named_modules import adapted_names, find_modules
from goat_jax.training.losses import LossFn
from goat_jax.training.step import counted, forward
from goat_jax.typing import Array, Batch, PyTree


def mean_gates(
    graph: nnx.GraphDef,
    trainable: dict[str, PyTree],
    base: PyTree,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    model: nnx.Module,
) -> dict[str, np.ndarray]:
    """Computes the mean weights (E,) of each module's experts over the real tokens of all batches.

    Dropout is off.

    Args:
        graph: the model's graph (`goat_jax.nn.dense.split_model`).
        trainable: the model's trainable pytree.
        base: the model's frozen pytree.
        batches: the batches to average over.
        loss_fn: the task's loss.
        model: the model that `graph` and the pytrees belong to, for the names of its modules.

    Returns:
        Module -> mean weights (E,).

    Raises:
        UserError: a module is of a mixture's experts, whose weights are not reported.
    """

    for ref in find_modules(model):
        if ref.module.adapter is not None and ref.experts is not None:
            raise UserError(
                f"{ref.pattern}: mean weights are not measured for the layers of a mixture's "
                "experts: give --to goat, or adapt other modules"
            )

    @jax.jit
    def weigh(trainable: dict, base: PyTree, batch: Batch) -> tuple[dict[str, Array], Array]:
        mask = counted(batch)
        ctx = dataclasses.replace(Context.of_batch(batch, None, mask), per_token=True)
        reports = forward(graph, trainable, base, batch, loss_fn, ctx).reports
        tokens = mask.sum().astype(jnp.float32)
        means = {name: report.mean_weights for name, report in reports.items()}
        return jax.tree.map(lambda mean: mean * tokens, means), tokens

    sums_and_counts = [weigh(trainable, base, batch) for batch in batches]
    tokens = sum(float(count) for _, count in sums_and_counts)
    experts = {
        name: ref.module.adapter.scale.shape[-1]
        for ref in find_modules(model)
        if ref.module.adapter is not None
        for name in ref.names()
    }
    gates = {}
    for pattern, names in adapted_names(model).items():
        parts = [np.asarray(sums[pattern], np.float64) for sums, _ in sums_and_counts]
        whole = np.sum(parts, 0) / tokens
        for name, weights in zip(names, whole, strict=True):
            gates[name] = weights[: experts[name]].astype(np.float32)
    return gates
