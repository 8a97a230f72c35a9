"""Pure, jitted training and evaluation steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.stages import Lowered

from goat_jax.adapters.adapter import Report
from goat_jax.adapters.context import Context
from goat_jax.core.aux_losses import balance_of_layers
from goat_jax.nn.dense import Sown, merge_model
from goat_jax.nn.named_modules import reports_by_name
from goat_jax.training.losses import LossFn
from goat_jax.training.state import RunState
from goat_jax.typing import Array, Batch, Key, PyTree

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Jitted(Protocol[P, R]):
    """A jitted function, which can also be compiled without a call."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered:
        """Lowers the function for arguments of these shapes."""
        ...


Metrics = dict[str, Any]
TrainStep = Jitted[[RunState, PyTree, Batch], tuple[RunState, Metrics]]
EvalStep = Callable[[dict[str, PyTree], PyTree, Batch], tuple[Metrics, Array]]


def make_train_step(
    graph: nnx.GraphDef,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    aux_weight: float | Array,
    grad_accum_steps: int = 1,
    shardings: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Makes an optimizer step, a jitted function ``(state, base, batch) -> (state, metrics)``.

    The state is donated. The base is an argument, so it is neither copied nor compiled in. A batch
    is split into `grad_accum_steps` micro-batches along its first axis, which run in sequence.
    Losses are sums divided by the full batch's count, so splitting does not change the gradient,
    except that the balance loss is averaged over the micro-batches.

    Metrics: loss, task_loss, aux_loss, grad_norm (before clipping), update_norm, the loss_fn's
    extra sums divided by its count, reports (name -> `Report`), and squares_by_leaf and
    update_squares_by_leaf: the squared norm of every gradient and update (per layer, if stacked).

    Args:
        graph: the model's static structure.
        loss_fn: the task's loss.
        optimizer: the optimizer of the trainable arrays.
        aux_weight: the weight of the adapters' auxiliary losses.
        grad_accum_steps: the number of micro-batches per step.
        shardings: in_shardings and out_shardings on a mesh; None for one device.
    """

    def total_loss(
        trainable: dict, base: PyTree, batch: Batch, key: Key, count: Array
    ) -> tuple[Array, Metrics]:
        ctx = Context.of_batch(batch, key, batch.get("attention_mask"))
        result = forward(graph, trainable, base, batch, loss_fn, ctx)
        task_loss = result.loss / count
        aux_loss = aux_weight * sum_of_aux(result.reports) + result.balance
        aux_loss = aux_loss / grad_accum_steps
        metrics = {name: value / count for name, value in result.sums.items()}
        metrics |= {"task_loss": task_loss, "aux_loss": aux_loss, "reports": result.reports}
        return task_loss + aux_loss, metrics

    grad_of_loss = jax.value_and_grad(total_loss, has_aux=True)

    @partial(jax.jit, donate_argnums=0, **(shardings or {}))
    def train_step(state: RunState, base: PyTree, batch: Batch) -> tuple[RunState, Metrics]:
        key, base = jax.random.fold_in(state.key, state.step), state.frozen(base)
        count = loss_fn.count(batch)
        if grad_accum_steps == 1:
            (loss, metrics), grads = grad_of_loss(state.trainable, base, batch, key, count)
        else:
            (loss, metrics), grads = _accumulated(
                grad_of_loss, grad_accum_steps, state.trainable, base, batch, key, count
            )
        squares = jax.tree.map(_squares, grads)
        metrics |= {"loss": loss, "grad_norm": _norm(squares), "squares_by_leaf": squares}
        with jax.numpy_dtype_promotion("standard"):  # optax takes powers by an integer count
            updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        squares = jax.tree.map(_squares, updates)
        metrics |= {"update_norm": _norm(squares), "update_squares_by_leaf": squares}
        trainable = optax.apply_updates(state.trainable, updates)
        changes = {"step": state.step + 1, "trainable": trainable, "opt_state": opt_state}
        return dataclasses.replace(state, **changes), metrics

    return train_step


def make_eval_step(
    graph: nnx.GraphDef,
    loss_fn: LossFn,
    shardings: Mapping[str, Any] | None = None,
) -> EvalStep:
    """Makes a jitted evaluation step ``(trainable, base, batch) -> (sums, outputs)``.

    Dropout is off. The sums add up over batches: loss, count, the loss_fn's extra sums, tokens,
    and loads (module name -> number of tokens that selected each expert, (L, E)). Rows of weight 0
    count nowhere. Without an attention mask every row counts once, so `tokens` and loads are
    numbers of rows.

    Args:
        graph: the model's static structure.
        loss_fn: the task's loss.
        shardings: in_shardings and out_shardings on a mesh; None for one device.
    """

    @partial(jax.jit, **(shardings or {}))
    def eval_step(trainable: dict, base: PyTree, batch: Batch) -> tuple[Metrics, Array]:
        mask = counted(batch)
        ctx = Context.of_batch(batch, None, mask)
        result = forward(graph, trainable, base, batch, loss_fn, ctx)
        tokens = mask.sum().astype(jnp.float32)
        loads = {name: report.load * tokens for name, report in result.reports.items()}
        sums = {"loss": result.loss, "count": loss_fn.count(batch), **result.sums}
        return {**sums, "tokens": tokens, "loads": loads}, result.outputs

    return eval_step


def counted(batch: Batch) -> Array:
    """Returns a mask, True where a token counts: (B, T), or (B, 1) without an attention mask."""
    rows = (batch["weights"] > 0)[:, None]
    real = batch.get("attention_mask")
    return rows if real is None else (real != 0) & rows


class Forward(NamedTuple):
    """Result of a forward pass.

    Attributes:
        loss: the sum of the task's losses.
        sums: the loss_fn's extra sums by name.
        outputs: the outputs that are scored.
        reports: module name -> the adapter's `Report`, with layers as the first axis.
        balance: the load balancing loss of the model's own routers, weighted; 0 without any.
    """

    loss: Array
    sums: dict[str, Array]
    outputs: Array
    reports: dict[str, Report]
    balance: Array


def forward(
    graph: nnx.GraphDef,
    trainable: dict,
    base: PyTree,
    batch: Batch,
    loss_fn: LossFn,
    ctx: Context,
) -> Forward:
    """Runs the model under its loss_fn and collects the adapters' reports."""
    model = merge_model(graph, trainable, base)
    (loss, sums, outputs), sown = nnx.capture(loss_fn.loss, Sown)(model, batch, ctx)
    captured = nnx.to_pure_dict(sown)
    balance = balance_of_layers(captured)
    return Forward(loss, sums, outputs, reports_by_name(model, captured), balance)


def sum_of_aux(reports: dict[str, Report]) -> Array:
    """Returns the unweighted sum of the auxiliary losses of all modules and layers."""
    return sum((report.aux_loss.sum() for report in reports.values()), jnp.zeros(()))


def _squares(array: Array) -> Array:
    """Returns an array's squared norm, per entry of its first axis (the layer, in a stack)."""
    return jnp.square(array).sum(axis=tuple(range(1, array.ndim)))


def _norm(squares: PyTree) -> Array:
    """Returns the norm of a complete tree from its leaves' squared norms."""
    return jnp.sqrt(sum(leaf.sum() for leaf in jax.tree.leaves(squares)))


def _accumulated(
    grad_of_loss: Callable,
    grad_accum_steps: int,
    trainable: PyTree,
    base: PyTree,
    batch: Batch,
    key: Key,
    count: Array,
) -> tuple[tuple[Array, Metrics], PyTree]:
    """Returns the full batch's loss, metrics and gradient, one micro-batch in memory at a time."""
    cut = jax.tree.map(lambda a: a.reshape(grad_accum_steps, -1, *a.shape[1:]), dict(batch))

    def one(number: Array) -> PyTree:
        micro = jax.tree.map(lambda a: a[number], cut)
        # One key for all would give all the same dropout masks.
        micro_key = jax.random.fold_in(key, number)
        (loss, metrics), grads = grad_of_loss(trainable, base, micro, micro_key, count)
        reports = metrics.pop("reports")
        return (loss, metrics), grads, jax.tree.map(lambda value: value / grad_accum_steps, reports)

    def add(total: PyTree, number: Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, one(number)), None

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, jnp.zeros((), jnp.int32)))
    ((loss, metrics), grads, reports), _ = jax.lax.scan(add, zeros, jnp.arange(grad_accum_steps))
    return (loss, {**metrics, "reports": reports}), grads
