"""Constant weights of every expert in place of a router's, from a run's data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.core.gate_fit import solve_gates
from goat_jax.errors import UserError
from goat_jax.nn.named_modules import adapted_names, find_modules
from goat_jax.training.losses import LossFn
from goat_jax.training.step import counted, forward
from goat_jax.typing import Array, Batch, PyTree


class ConstantGates(NamedTuple):
    """Weights (E,) of each module's experts, by the module's name.

    Attributes:
        mean: the router's mean weights.
        fitted: the weights with which the experts' sum has the least squared distance to the routed
            sum, given the inputs that the module has in the routed model.
    """

    mean: dict[str, np.ndarray]
    fitted: dict[str, np.ndarray]


def constant_gates(
    graph: nnx.GraphDef,
    trainable: dict[str, PyTree],
    base: PyTree,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    model: nnx.Module,
) -> ConstantGates:
    """Measures constant weights of each module's experts on the real tokens of all batches.

    Dropout is off.

    Args:
        graph: the model's graph (`goat_jax.nn.dense.split_model`).
        trainable: the model's trainable pytree.
        base: the model's frozen pytree.
        batches: the batches to measure on.
        loss_fn: the task's loss.
        model: the model that `graph` and the pytrees belong to, for the names of its modules.

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
    def weigh(trainable: dict, base: PyTree, batch: Batch) -> tuple[dict[str, Any], Array]:
        mask = counted(batch)
        ctx = Context.of_batch(batch, None, mask)
        ctx = dataclasses.replace(ctx, per_token=True, fit_gates=True)
        reports = forward(graph, trainable, base, batch, loss_fn, ctx).reports
        tokens = mask.sum().astype(jnp.float32)
        sums = {}
        for name, report in reports.items():
            assert report.mean_weights is not None
            sums[name] = (report.mean_weights * tokens, report.gate_equations)
        return sums, tokens

    sums_and_counts = [weigh(trainable, base, batch) for batch in batches]
    tokens = sum(float(count) for _, count in sums_and_counts)
    experts = {
        name: ref.module.adapter.scale.shape[-1]
        for ref in find_modules(model)
        if ref.module.adapter is not None
        for name in ref.names()
    }
    gates = ConstantGates({}, {})
    for pattern, names in adapted_names(model).items():
        means, equations = (
            np.sum([np.asarray(sums[pattern][part], np.float64) for sums, _ in sums_and_counts], 0)
            for part in (0, 1)
        )
        for name, mean, equation in zip(names, means / tokens, equations, strict=True):
            count = experts[name]
            gates.mean[name] = mean[:count].astype(np.float32)
            gates.fitted[name] = solve_gates(equation[:count, : 1 + count])
    return gates
