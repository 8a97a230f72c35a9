"""Replays a layer case: a `Dense` with an adapter, its gradients, and AdamW steps on one batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from goat_jax.adapters.adapter import Report, init_adapter
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.layers import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.parity.align import LARGEST_NOISE, agreeing_steps, align_signs, svd_noise
from goat_jax.parity.checks import GIVEN, LAYER, OWN, Check, Comparison, Note
from goat_jax.parity.layer_bundle import LayerCase, Plan, read_plan, swap
from goat_jax.parity.published import scale_note
from goat_jax.typing import Array, Factors, PyTree


def replay_case(case: LayerCase) -> list[Check | Note]:
    """Runs a case from the given factors and from our own start, and compares every quantity.

    Raises:
        UserError: a case or array that cannot be read.
    """
    plan = read_plan(case)
    given = Comparison(LAYER, str(case.folder), case.name, GIVEN)
    own = Comparison(LAYER, str(case.folder), case.name, OWN)
    with jax.default_matmul_precision("highest"):
        start = _given_factors(plan)
        outcome = _run_plan(plan, plan.residual, start)
        return [
            *_check_start(plan, start, given),
            *_check_outcome(plan, outcome, given),
            *_check_own(plan, outcome, own),
        ]


def _given_factors(plan: Plan) -> Factors:
    return {name: jnp.asarray(value) for name, value in plan.factors.items()}


def _check_start(plan: Plan, factors: Factors, compare: Comparison) -> Iterator[Check | Note]:
    """The residual that belongs to the given factors, and the scale where its rule is known."""
    residual = _edit_base(plan.spec, jnp.asarray(plan.kernel), factors, jnp.asarray(_scale(plan)))
    yield compare.check("W_res", np.asarray(residual), plan.residual)
    rule = np.asarray(plan.kind.scale(plan.kernel.shape[0], None, plan.spec))
    if plan.kind.fixed:
        yield compare.check("scale", rule, _scale(plan))
    elif not np.allclose(rule, _scale(plan), rtol=1e-6):
        yield compare.note(scale_note(_scale(plan), rule))


def _scale(plan: Plan) -> np.ndarray:
    return np.asarray(plan.spec.scale(plan.kernel.shape[0], None, plan.spec))


@partial(jax.jit, static_argnums=0)
def _edit_base(spec: AdapterSpec, kernel: Array, factors: Factors, scale: Array) -> Array:
    return spec.base_edit(kernel, factors, scale, spec)


@partial(jax.jit, static_argnums=0)
def _own_start(spec: AdapterSpec, kernel: Array) -> tuple[Array, Array, Array]:
    start = init_adapter(kernel, spec, jax.random.key(0))
    return start.kernel, start.factors["a"], start.factors["b"]


def _check_own(plan: Plan, reference: Outcome, compare: Comparison) -> Iterator[Check | Note]:
    """Our initialisation, and the case run from it with the given router."""
    residual, a, b = map(np.asarray, _own_start(plan.spec, jnp.asarray(plan.kernel)))
    given = plan.factors
    if plan.kind.choice is None:
        # a is random: what can be compared is that nothing is taken off and nothing added.
        yield compare.check("W_res", residual, plan.residual)
        yield compare.check("init B", b, given["b"])
        return
    noise = svd_noise(plan.kernel, plan.kind.choice, plan.spec.num_experts, plan.spec.rank)
    if noise > LARGEST_NOISE:
        yield compare.note(
            f"no run from our own start: W0 has singular values too near each other (noise "
            f"{noise:.1e}) for its singular vectors to be comparable"
        )
        return
    a, b = align_signs(a, b, given["a"], given["b"])
    compare = compare.with_noise(noise)
    yield compare.check("W_res", residual, plan.residual)
    yield compare.check("init A", a, given["a"])
    yield compare.check("init B", b, given["b"])
    factors = {"a": jnp.asarray(a), "b": jnp.asarray(b), "router": jnp.asarray(given["router"])}
    outcome = _run_plan(plan, residual, factors)
    agree = agreeing_steps(outcome.loads, reference.loads)
    yield from _check_outcome(plan, outcome, compare, agree)


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
    and the output after the last."""

    first: Seen
    losses: np.ndarray
    loads: np.ndarray
    y_final: np.ndarray


def _check_outcome(
    plan: Plan, outcome: Outcome, compare: Comparison, agree: int | None = None
) -> Iterator[Check | Note]:
    """Compares what was computed; of the training only its first `agree` forward passes."""
    first, expected = outcome.first, plan.expected
    ours = {
        "y": first.y,
        "aux": first.aux,
        "loss": first.loss,
        "grad_x": first.grad_x,
        "grad_A": swap(np.asarray(first.grads["a"])),
        "grad_B": swap(np.asarray(first.grads["b"])),
        "grad_router": first.grads["router"].T,
    }
    for name, value in ours.items():
        yield compare.check(name, np.asarray(value), expected[name])
    yield compare.check("adamw_losses", outcome.losses[:agree], expected["adamw_losses"][:agree])
    if agree is None or agree > plan.steps:
        yield compare.check("y_final", outcome.y_final, expected["y_final"])
    else:
        yield compare.note(
            f"own start: a token changes its experts at step {agree}, a near-tie that the SVD's "
            "rounding decides; losses are compared up to there"
        )


def _run_plan(plan: Plan, residual: np.ndarray, factors: Factors) -> Outcome:
    """Builds the layer out of the package's own modules and trains it."""
    graph, trainable, base = split_model(_make_layer(plan, residual, factors))
    batch = (jnp.asarray(plan.x), jnp.asarray(plan.target), jnp.asarray(plan.aux_coef, jnp.float32))
    state = (trainable, make_optimizer(plan.optimizer, plan.steps).init(trainable))
    history: list[Seen] = []
    for _ in range(plan.steps + 1):
        state, seen = _step(graph, plan.optimizer, state, base, *batch)
        history.append(seen)
    return Outcome(
        first=history[0],
        losses=np.stack([np.asarray(seen.loss) for seen in history[:-1]]),
        loads=np.stack([np.asarray(seen.load) for seen in history]),
        y_final=np.asarray(history[-1].y),
    )


def _make_layer(plan: Plan, residual: np.ndarray, factors: Factors) -> Dense:
    with_bias = plan.bias is not None
    layer = nnx.eval_shape(
        lambda: Dense(*plan.kernel.shape, use_bias=with_bias, rngs=nnx.Rngs(0))  # type: ignore
    )
    layer.kernel.set_value(jnp.asarray(residual))
    if layer.bias is not None:
        layer.bias.set_value(jnp.asarray(plan.bias))
    layer.adapter = Adapter(factors, jnp.asarray(_scale(plan)), plan.spec, salt=0)
    return layer


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    graph: Any,
    config: OptimizerConfig,
    state: tuple[PyTree, Any],
    base: PyTree,
    x: Array,
    target: Array,
    aux_coef: Array,
) -> tuple[tuple[PyTree, Any], Seen]:
    """What a layer computes, and the state after one AdamW step on it."""

    def loss_of(trainable: dict[str, PyTree], x: Array) -> tuple[Array, tuple[Array, Report]]:
        y, sown = run_model(merge_model(graph, trainable, base), x, EVAL)
        report = sown["adapter"]["report"][0]
        return jnp.mean(jnp.square(y - target)) + aux_coef * report.aux_loss, (y, report)

    trainable, opt_state = state
    grad_of_loss = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, (y, report)), (grads, grad_x) = grad_of_loss(trainable, x)
    with jax.numpy_dtype_promotion("standard"):  # optax takes powers by an integer count
        # The rate is constant, so the number of steps does not matter to the optimizer.
        updates, opt_state = make_optimizer(config, 1).update(grads, opt_state, trainable)
    factors = grads["adapter"]["adapter"]
    seen = Seen(y, report.aux_loss, loss, report.load, grad_x, factors)
    return (optax.apply_updates(trainable, updates), opt_state), seen
