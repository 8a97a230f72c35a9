"""Micro-batches of a small model: the whole batch's gradient, and dropout masks of their own."""

import jax
import jax.numpy as jnp
import optax
import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.injection.inject import inject
from goat_jax.nn.dense import split_model
from goat_jax.testing import TinyModel, assert_close
from goat_jax.training.losses import LossFn
from goat_jax.training.state import RunState
from goat_jax.training.step import make_train_step


def loss(model, batch, ctx):
    """Squares of the logits; also the sum and the sum of squares of the micro-batches' losses."""
    total = jnp.square(model(batch["x"], ctx)).sum()
    return total, {"sum": total, "squares": jnp.square(total)}, total


OBJECTIVE = LossFn(loss, lambda batch: jnp.float32(1.0))


def one_step(parts, dropout=0.0):
    """A step on two rows that occur twice, so that both halves of the batch are equal."""
    model = TinyModel(layers=1)
    spec = method_spec("molora", total_rank=4, num_experts=2, top_k=1, dropout=dropout)
    inject(model, spec, ["query"], key=jax.random.key(0))
    graph, trainable, base = split_model(model)
    trainable = jax.tree.map(lambda value: value + 0.1, trainable)  # b starts as zero
    optimizer = optax.sgd(1.0)
    step = make_train_step(graph, OBJECTIVE, optimizer, aux_weight=0.1, grad_accum_steps=parts)
    state = RunState.create(trainable, optimizer, jax.random.key(1))
    rows = jax.random.normal(jax.random.key(2), (2, 3, 8))
    return step(state, base, {"x": jnp.tile(rows, (2, 1, 1))})


def spread(metrics):
    """0 if both micro-batches had the same loss, else above."""
    return float(2 * metrics["squares"] / metrics["sum"] ** 2 - 1)


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch():
    (whole, one), (parts, many) = one_step(1), one_step(2)
    assert one["aux_loss"] > 0 and abs(spread(many)) < 1e-6
    assert_close(parts.trainable, whole.trainable)
    for name in ("loss", "task_loss", "aux_loss", "grad_norm"):
        assert_close(many[name], one[name])


@pytest.mark.slow
def test_equal_micro_batches_have_dropout_masks_of_their_own():
    _, metrics = one_step(2, dropout=0.5)
    assert spread(metrics) > 1e-4
