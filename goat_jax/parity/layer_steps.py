"""Builds a layer from the package's modules and trains it on one batch."""

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
class LayerOptimizer:
    """An optimizer with a constant learning rate, usable as a static argument of jitted functions.

    Attributes:
        config: the settings of AdamW.
        transform: the method's change of the optimizer.
        steps: the number of training steps, for methods that schedule their change by it.
    """

    config: OptimizerConfig
    transform: Transform = PLAIN
    steps: int = 1

    def make(self, trainable: PyTree, base: PyTree) -> optax.GradientTransformation:
        """Makes the optimizer.

        Args:
            trainable: the trainable pytree.
            base: the frozen pytree, which has the adapters' scales.
        """
        scales = scales_of(trainable, base)
        return make_optimizer(self.config, self.steps, self.transform, scales)


@dataclasses.dataclass(frozen=True)
class LayerRun:
    """The settings and data of a layer's training.

    Attributes:
        spec: the layer's adapter spec.
        optimizer: the optimizer.
        steps: the number of steps.
        aux_coef: the weight of the auxiliary loss.
        bias: the bias, (O,), or None.
        x: the inputs, (..., I).
        target: the target outputs, (..., O).
        ctx: the tasks of the rows, if the method is gated by tasks.
    """

    spec: AdapterSpec
    optimizer: LayerOptimizer
    steps: int
    aux_coef: float
    bias: np.ndarray | None
    x: np.ndarray
    target: np.ndarray
    ctx: Context = EVAL


class ObservedStep(NamedTuple):
    """Results of one step of a case, in our layout.

    Attributes:
        y: the output, (..., O).
        aux: the unweighted auxiliary loss, ().
        loss: the total loss, ().
        load: the fraction of the tokens at every expert, (E,).
        grad_x: the gradient of the inputs, (..., I).
        grads: the gradients of the factors by name.
    """

    y: Array
    aux: Array
    loss: Array
    load: Array
    grad_x: Array
    grads: Factors


class StepsResult(NamedTuple):
    """Results of a case's training.

    Attributes:
        first: the results of the first step.
        losses: the loss of every step, (steps,).
        loads: the load of every step and of the output after the last, (steps + 1, E).
        y_final: the output after the last step.
        factors: the factors after the last step.
    """

    first: ObservedStep
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
    """Builds a `Dense` on a frozen kernel (I, O) with an adapter of these arrays.

    Args:
        run: the settings of the training, with the bias.
        kernel: the frozen kernel.
        factors: the adapter's trained arrays.
        scale: the experts' scales, (E,).
        constants: the adapter's frozen arrays.
    """
    # Only an abstract template: its sizes are those of x and target, whatever the kernel's are.
    sizes, with_bias = (run.x.shape[-1], run.target.shape[-1]), run.bias is not None
    layer = nnx.eval_shape(lambda: Dense(*sizes, use_bias=with_bias, rngs=nnx.Rngs(0)))
    layer.kernel.set_value(jnp.asarray(kernel))
    if layer.bias is not None:
        layer.bias.set_value(jnp.asarray(run.bias))
    layer.adapter = Adapter(factors, scale, run.spec, 0, constants)
    return layer


def run_layer(run: LayerRun, kernel: np.ndarray, factors: Factors, scale: Array) -> StepsResult:
    """Trains a layer on the run's batch and returns NumPy results only.

    Args:
        run: the settings and data of the training.
        kernel: the frozen kernel, (I, O).
        factors: the adapter's initial trained arrays.
        scale: the experts' scales, (E,).
    """
    graph, trainable, base = split_model(make_layer(run, kernel, factors, scale))
    state = (trainable, run.optimizer.make(trainable, base).init(trainable))
    batch = batch_of(run)
    history: list[ObservedStep] = []
    for _ in range(run.steps):
        state, observed = layer_step(graph, run.optimizer, state, base, *batch)
        history.append(observed)
    # One more step yields the output after the last update; the factors are read before it.
    trained = {name: np.asarray(value) for name, value in state[0]["adapter"]["adapter"].items()}
    history.append(layer_step(graph, run.optimizer, state, base, *batch)[1])
    return StepsResult(
        first=history[0],
        losses=np.stack([np.asarray(observed.loss) for observed in history[:-1]]),
        loads=np.stack([np.asarray(observed.load) for observed in history]),
        y_final=np.asarray(history[-1].y),
        factors=trained,
    )


def batch_of(run: LayerRun) -> tuple[Array, Array, Array, Context]:
    """Returns the last arguments of `layer_step`: x, target, aux_coef and ctx."""
    coef = jnp.asarray(run.aux_coef, jnp.float32)
    return jnp.asarray(run.x), jnp.asarray(run.target), coef, run.ctx


@partial(jax.jit, static_argnums=(0, 1))
def layer_step(
    graph: nnx.GraphDef,
    optimizer: LayerOptimizer,
    state: tuple[PyTree, Any],
    base: PyTree,
    x: Array,
    target: Array,
    aux_coef: Array,
    ctx: Context,
) -> tuple[tuple[PyTree, Any], ObservedStep]:
    """Takes one optimizer step; returns the new state and the layer's results before the step."""
    trainable, opt_state = state
    observed, grads = layer_gradients(graph, trainable, base, x, target, aux_coef, ctx)
    with jax.numpy_dtype_promotion("standard"):  # optax takes powers by an integer count
        tx = optimizer.make(trainable, base)
        updates, opt_state = tx.update(grads, opt_state, trainable)
    return (optax.apply_updates(trainable, updates), opt_state), observed


def layer_gradients(
    graph: nnx.GraphDef,
    trainable: PyTree,
    base: PyTree,
    x: Array,
    target: Array,
    aux_coef: Array,
    ctx: Context,
) -> tuple[ObservedStep, PyTree]:
    """Computes a layer's results and the gradients of its loss.

    The loss is the mean squared error plus the weighted auxiliary loss.
    """

    def loss_of(trainable: dict[str, PyTree], x: Array) -> tuple[Array, tuple[Array, Report]]:
        y, sown = run_model(merge_model(graph, trainable, base), x, ctx)
        report = sown["adapter"]["report"][0]
        return jnp.mean(jnp.square(y - target)) + aux_coef * report.aux_loss, (y, report)

    grad_of_loss = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, (y, report)), (grads, grad_x) = grad_of_loss(trainable, x)
    factors = grads["adapter"]["adapter"]
    return ObservedStep(y, report.aux_loss, loss, report.load, grad_x, factors), grads
