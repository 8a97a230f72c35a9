"""The jitted step: one trace, donation, accumulation, clipping, parity with a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goat_jax.optim.schedules import make_schedule
from goat_jax.training.data import load_data
from goat_jax.training.losses import CLASSIFICATION
from goat_jax.training.setup import build
from goat_jax.training.state import RunState
from goat_jax.training.step import forward, make_train_step, sum_of_aux
from kinds import compiled

pytestmark = pytest.mark.slow  # one compiled step after another


@pytest.fixture(scope="module")
def built(two_modules):
    # Dropout off, so that steps can be compared number by number.
    adapter = dataclasses.replace(two_modules.adapter, dropout=0.0)
    return build(dataclasses.replace(two_modules, adapter=adapter))


@pytest.fixture(scope="module")
def batch(config):
    return next(load_data(config).train)


def fresh(built) -> RunState:
    """A state of its own: steps donate theirs."""
    return jax.tree.map(jnp.copy, built.state)


def test_one_trace_over_many_steps(built, batch):
    state = fresh(built)
    for _ in range(5):
        state, _ = built.train_step(state, built.base, batch)
    assert compiled(built.train_step) == 1 and int(state.step) == 5


def test_the_state_is_donated_and_the_base_is_not(built, batch):
    state = fresh(built)
    old = jax.tree.leaves(state.trainable)[0]
    built.train_step(state, built.base, batch)
    assert old.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(built.base))


def test_loss_is_task_plus_weighted_aux(built, batch):
    _, metrics = built.train_step(fresh(built), built.base, batch)
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["task_loss"]) + float(metrics["aux_loss"]), rel=1e-6
    )
    total = float(sum_of_aux(metrics["reports"]))
    assert float(metrics["aux_loss"]) == pytest.approx(1e-3 * total, rel=1e-6)
    assert total > 2 * 2 * 0.9  # about 1 for each of 2 modules in 2 layers


# On a whole model; test_micro_batches.py has it on a small one.
@pytest.mark.nightly
@pytest.mark.parametrize("grad_accum_steps", [2, 4])
def test_accumulation_gives_the_whole_batch_s_gradient(built, batch, grad_accum_steps):
    optimizer = optax.sgd(1.0)

    def after(parts):
        step = make_train_step(
            built.graph, CLASSIFICATION, optimizer, aux_weight=0.0, grad_accum_steps=parts
        )
        state = RunState.create(fresh(built).trainable, optimizer, jax.random.key(0))
        return step(state, built.base, batch)

    (whole, one), (cut, many) = after(1), after(grad_accum_steps)
    for a, b in zip(jax.tree.leaves(whole.trainable), jax.tree.leaves(cut.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(one["accuracy"]) == pytest.approx(float(many["accuracy"]))


def test_the_step_is_clip_adamw_schedule(built, batch, config):
    """Each step agrees with optax applied by hand to the plain gradient."""
    state = fresh(built)
    trainable = fresh(built).trainable
    schedule = make_schedule("cosine", 1e-2, 3, config.train.steps)
    adam = optax.scale_by_adam()
    moments = adam.init(trainable)

    def loss(trainable):
        from goat_jax.adapters.context import Context

        ctx = Context(None, batch["attention_mask"])
        result = forward(built.graph, trainable, built.base, batch, CLASSIFICATION, ctx)
        return result.loss / batch["weights"].sum() + 1e-3 * sum_of_aux(result.reports)

    grad = jax.jit(jax.grad(loss))
    for number in range(4):
        state, metrics = built.train_step(state, built.base, batch)
        grads = grad(trainable)
        norm = float(jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads))))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        factor = jnp.float32(min(1.0, 1.0 / norm))
        grads = jax.tree.map(lambda g, factor=factor: g * factor, grads)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = adam.update(grads, moments)
        rate = schedule(number)
        trainable = jax.tree.map(lambda p, u, rate=rate: p - rate * u, trainable, updates)
    for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6)


def test_dropout_differs_from_step_to_step_and_repeats_with_the_key(light, batch):
    built = build(light)
    state = fresh(built)
    frozen = dataclasses.replace(state, opt_state=fresh(built).opt_state)
    _, first = built.train_step(fresh(built), built.base, batch)
    _, same = built.train_step(fresh(built), built.base, batch)
    later = dataclasses.replace(frozen, step=jnp.int32(1))
    _, other = built.train_step(later, built.base, batch)
    assert float(first["task_loss"]) == float(same["task_loss"])
    assert float(first["task_loss"]) != float(other["task_loss"])
