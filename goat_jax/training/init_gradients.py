"""Gradients of a model's arrays, and those of its kernels for methods that start from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.injection.targets import Targets, matches
from goat_jax.nn.named_modules import ModuleRef, find_modules
from goat_jax.training.losses import LossFn
from goat_jax.typing import Array, Batch, PyTree


def kernel_gradients(
    model: nnx.Module, loss_fn: LossFn, batches: Iterable[Batch], target_modules: Targets
) -> dict[str, Array]:
    """Computes the mean gradient of the loss with respect to the target kernels.

    Every batch has the same weight, whatever its number of tokens (LoRA-GA, arXiv 2407.05000,
    algorithm 1). As in full fine-tuning, the gradients of all target kernels are in memory at
    once, in the kernels' dtype, plus their float32 sum.

    Args:
        model: the pretrained model, without adapters.
        loss_fn: the task's loss.
        batches: the training batches to average over, at least one.
        target_modules: the modules to adapt, as for `goat_jax.injection.inject.inject`.

    Returns:
        full module name -> gradient (I, O) in float32, as `inject` takes them.
    """
    refs = [
        ref
        for ref in find_modules(model)
        if any(matches(name, target_modules) for name in ref.names())
    ]
    gradient = gradients_at(model, loss_fn, {(*ref.path, ref.module.matrix) for ref in refs})
    total, count = None, 0
    for batch in batches:
        batch_gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradient(batch))
        total = batch_gradients if total is None else jax.tree.map(jnp.add, total, batch_gradients)
        count += 1
    by_path = arrays_by_path(jax.tree.map(lambda value: value / count, total))
    return {name: value for ref in refs for name, value in _by_layer(ref, by_path)}


def gradients_at(
    model: nnx.Module, loss_fn: LossFn, paths: Collection[tuple]
) -> Callable[[Batch], nnx.State]:
    """Makes the jitted gradient of a batch's mean loss, without dropout.

    Args:
        model: the model.
        loss_fn: the task's loss.
        paths: the paths of the arrays to differentiate with respect to.

    Returns:
        The function from a batch to the gradients, in the arrays' dtypes.
    """
    graph, moved, rest = nnx.split(model, lambda path, _: path in paths, ...)

    @jax.jit
    def gradients(moved: PyTree, rest: PyTree, batch: Batch) -> PyTree:
        def loss_of(moved: PyTree) -> Array:
            ctx = Context.of_batch(batch, None, batch.get("attention_mask"))
            loss, _, _ = loss_fn.loss(nnx.merge(graph, moved, rest), batch, ctx)
            return loss / loss_fn.count(batch)

        return jax.grad(loss_of)(moved)

    return lambda batch: gradients(moved, rest, batch)


def arrays_by_path(state: Any) -> dict[tuple, Array]:
    """Returns the arrays of a state by their paths."""
    return {path: variable[...] for path, variable in nnx.to_flat_state(state)}


def _by_layer(ref: ModuleRef, by_path: dict[tuple, Array]) -> list[tuple[str, Any]]:
    value = by_path[(*ref.path, ref.module.matrix)]
    return list(zip(ref.names(), ref.each(value), strict=True))
