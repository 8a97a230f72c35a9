"""Builds a layer out of the package's own modules and trains it on one batch."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from goat_jax.adapters.adapter import Report
from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.nn.dense import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.optim.pairs import scales_of
from goat_jax.optim.transforms import PLAIN, Transform
from goat_jax.typing import Array, Factors, PyTree


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimizer at a constant rate, as a static argument.

    Attributes:
        config: its AdamW.
        transform: what the method makes of it.
        steps: of the training, for methods with a schedule of their own.
    """

    config: OptimizerConfig
    transform: Transform = PLAIN
    steps: int = 1

    def make(self, trainable: PyTree, base: PyTree) -> optax.GradientTransformation:
        """The transformation."""
        scales = scales_of(trainable, base)
        return make_optimizer(self.config, self.steps, self.transform, scales)


@dataclasses.dataclass(frozen=True)
class LayerRun:
    """What a layer is trained with.

    Attributes:
        spec: the layer as parts.
        optimizer, steps: its training.
        aux_coef: weight of the auxiliary loss.
        bias: (O,) or None.
        x, target: (..., I), (..., O).
        ctx: tasks of the rows, if the method goes by them.
    """

    spec: AdapterSpec
    optimizer: Recipe
    steps: int
    aux_coef: float
    bias: np.ndarray | None
    x: np.ndarray
    target: np.ndarray
    ctx: Context = EVAL


class Seen(NamedTuple):
    """What one step of a case computes, in our layout."""

    y: Array
    aux: Array
    loss: Array
    load: Array
    grad_x: Array
    grads: Factors


class Outcome(NamedTuple):
    """What a case gives: all of its first step, every step's loss (steps,) and load (steps + 1, E),
    the output after the last and the factors that gave it."""

    first: Seen
    losses: np.ndarray
    loads: np.ndarray
    y_final: np.ndarray
    factors: dict[str, np.ndarray]


def make_layer(
    run: LayerRun,
    kernel: np.ndarray,
    factors: Factors,
    scale: Array,
    constants: Factors | None = None,
) -> Dense:
    """A `Dense` on a frozen kernel (I, O) with an adapter of these arrays."""
    # Only as a form: the sizes are those of x and target, whatever is left of the kernel.
    sizes, with_bias = (run.x.shape[-1], run.target.shape[-1]), run.bias is not None
    layer = nnx.eval_shape(lambda: Dense(*sizes, use_bias=with_bias, rngs=nnx.Rngs(0)))
    layer.kernel.set_value(jnp.asarray(kernel))
    if layer.bias is not None:
        layer.bias.set_value(jnp.asarray(run.bias))
    layer.adapter = Adapter(factors, scale, run.spec, 0, constants)
    return layer


def run_layer(run: LayerRun, kernel: np.ndarray, factors: Factors, scale: Array) -> Outcome:
    """Trains a layer on the run's batch; nothing of it is kept but numbers."""
    graph, trainable, base = split_model(make_layer(run, kernel, factors, scale))
    state = (trainable, run.optimizer.make(trainable, base).init(trainable))
    batch = batch_of(run)
    history: list[Seen] = []
    for _ in range(run.steps):
        state, seen = layer_step(graph, run.optimizer, state, base, *batch)
        history.append(seen)
    # One step more shows what the last update did; the factors are those before it.
    trained = {name: np.asarray(value) for name, value in state[0]["adapter"]["adapter"].items()}
    history.append(layer_step(graph, run.optimizer, state, base, *batch)[1])
    return Outcome(
        first=history[0],
        losses=np.stack([np.asarray(seen.loss) for seen in history[:-1]]),
        loads=np.stack([np.asarray(seen.load) for seen in history]),
        y_final=np.asarray(history[-1].y),
        factors=trained,
    )


def batch_of(run: LayerRun) -> tuple[Array, Array, Array, Context]:
    """The last arguments of `layer_step`."""
    coef = jnp.asarray(run.aux_coef, jnp.float32)
    return jnp.asarray(run.x), jnp.asarray(run.target), coef, run.ctx


@partial(jax.jit, static_argnums=(0, 1))
def layer_step(
    graph: Any,
    optimizer: Recipe,
    state: tuple[PyTree, Any],
    base: PyTree,
    x: Array,
    target: Array,
    aux_coef: Array,
    ctx: Context,
) -> tuple[tuple[PyTree, Any], Seen]:
    """What a layer computes, and the state after one optimizer step on it."""
    trainable, opt_state = state
    seen, grads = layer_gradients(graph, trainable, base, x, target, aux_coef, ctx)
    with jax.numpy_dtype_promotion("standard"):  # optax takes powers by an integer count
        tx = optimizer.make(trainable, base)
        updates, opt_state = tx.update(grads, opt_state, trainable)
    return (optax.apply_updates(trainable, updates), opt_state), seen


def layer_gradients(
    graph: Any,
    trainable: PyTree,
    base: PyTree,
    x: Array,
    target: Array,
    aux_coef: Array,
    ctx: Context,
) -> tuple[Seen, PyTree]:
    """What a layer computes, and the gradient of mean square error and auxiliary loss."""

    def loss_of(trainable: dict[str, PyTree], x: Array) -> tuple[Array, tuple[Array, Report]]:
        y, sown = run_model(merge_model(graph, trainable, base), x, ctx)
        report = sown["adapter"]["report"][0]
        return jnp.mean(jnp.square(y - target)) + aux_coef * report.aux_loss, (y, report)

    grad_of_loss = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, (y, report)), (grads, grad_x) = grad_of_loss(trainable, x)
    factors = grads["adapter"]["adapter"]
    return Seen(y, report.aux_loss, loss, report.load, grad_x, factors), grads
