"""The change of variables trains exactly what the scale in the forward pass trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goat_jax.errors import UserError
from goat_jax.optim.adam import scale_by_adam
from goat_jax.optim.scaling_alignment import alignment_ratios, scaling_alignment, times_ratios
from kinds import compiled
from tiers import first_of_each

EXPERTS, WIDTH, RANK, OUT, TOKENS = 3, 6, 2, 5, 7
SCALE = jnp.array([2.0, 5.0, 9.0])
OPTIMIZERS = {
    "sgd": optax.sgd(0.01),
    "momentum": optax.sgd(0.01, momentum=0.9),
    "adam": optax.adam(0.01),
    "clip, adam with a large epsilon, decay": optax.chain(
        optax.clip_by_global_norm(0.3),
        scale_by_adam(0.9, 0.999, 1e-2),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(optax.linear_schedule(0.02, 0.0, 20)),
    ),
}


def _problem():
    keys = jax.random.split(jax.random.key(0), 5)
    pair = {
        "a": 0.3 * jax.random.normal(keys[0], (EXPERTS, WIDTH, RANK)),
        "b": 0.3 * jax.random.normal(keys[1], (EXPERTS, RANK, OUT)),
        "router": jax.random.normal(keys[2], (WIDTH, EXPERTS)),
    }
    x = jax.random.normal(keys[3], (TOKENS, WIDTH))
    target = jax.random.normal(keys[4], (TOKENS, OUT))
    params = {"layer": pair, "head": {"bias": jnp.zeros((OUT,))}}

    def loss(params, scale):
        pair = params["layer"]
        weights = jax.nn.softmax(x @ pair["router"])
        y = jnp.einsum("TI,EIR,ERO,TE,E->TO", x, pair["a"], pair["b"], weights, scale)
        bias = jnp.broadcast_to(params["head"]["bias"], target.shape)
        return jnp.square(y + bias - target).mean()

    return params, loss


def _train(params, loss, optimizer, scale, steps=20):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, scale)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert compiled(step) == 1
    return params, np.array(losses)


def name_of(case):
    return "-".join(map(str, case))


CASES = [(forward, name) for forward in (1.0, 0.25) for name in OPTIMIZERS]


@pytest.mark.slow
@pytest.mark.parametrize("case", first_of_each(CASES, enumerate, CASES[:1]), ids=name_of)
def test_twenty_steps_are_those_of_the_scale_in_the_forward_pass(case):
    forward, name = case
    params, loss = _problem()
    ratios = alignment_ratios({"layer": {"scale": SCALE}, "head": {"bias": None}}, forward)
    with jax.default_matmul_precision("highest"):
        published, before = _train(params, loss, OPTIMIZERS[name], SCALE)
        aligned, after = _train(
            times_ratios(params, ratios),
            loss,
            scaling_alignment(OPTIMIZERS[name], ratios),
            jnp.full((EXPERTS,), forward),
        )
    assert before[-1] < before[0]
    np.testing.assert_allclose(after, before, rtol=2e-5)
    expected = times_ratios(published, ratios)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4),
        aligned,
        expected,
    )


def test_without_the_transform_the_runs_differ():
    params, loss = _problem()
    ratios = alignment_ratios({"layer": {"scale": SCALE}, "head": {"bias": None}}, 1.0)
    _, before = _train(params, loss, OPTIMIZERS["adam"], SCALE)
    _, after = _train(times_ratios(params, ratios), loss, OPTIMIZERS["adam"], jnp.ones((EXPERTS,)))
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5)
    assert abs(after[-1] - before[-1]) > 1e-2 * before[-1]


def test_a_forward_scale_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="forward scale 0 must be above 0"):
        alignment_ratios({"layer": {"scale": SCALE}}, 0)
