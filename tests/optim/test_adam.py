"""Adam's direction against float64, and against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from goat_jax.optim.adam import scale_by_adam
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.typing import PyTree


def in_float64(gradients, beta1, beta2, epsilon):
    m, v, updates = 0.0, 0.0, []
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        updates.append(m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + epsilon))
    return np.stack(updates)


def run(tx, gradients):
    params = {"x": jnp.zeros(gradients.shape[1:], gradients.dtype)}
    updates = []
    state: PyTree = tx.init(params)
    for g in gradients:
        update, state = tx.update({"x": g}, state, params)
        updates.append(np.asarray(update["x"], np.float64))
    return np.stack(updates), state


def gradients(steps=30, size=50):
    key = jax.random.key(0)
    size_of_each = jnp.exp(jax.random.normal(key, (size,)) * 3)
    return jax.random.normal(jax.random.fold_in(key, 1), (steps, size)) * size_of_each[None]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.9999), (0.5, 0.9), (0.0, 0.0)])
def test_updates_are_right_to_float32_rounding(betas):
    values = gradients()
    ours, _ = run(scale_by_adam(betas[0], betas[1], 1e-8), values)
    # Signs cancel in the first moment, so the error is measured against the updates' size, 1.
    np.testing.assert_allclose(ours, in_float64(values, betas[0], betas[1], 1e-8), atol=2e-6)


def test_optax_is_not_which_is_why_this_exists():
    values = gradients(steps=3)
    with jax.numpy_dtype_promotion("standard"):
        theirs, state = run(optax.scale_by_adam(0.9, 0.999, 1e-8), values)
    assert np.abs(theirs - in_float64(values, 0.9, 0.999, 1e-8)).max() > 1e-5
    _, own_state = run(scale_by_adam(0.9, 0.999, 1e-8), values)
    assert jax.tree.structure(state) == jax.tree.structure(own_state)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(own_state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_ten_steps_are_torch_s():
    values = gradients(steps=10)
    ours, _ = run(scale_by_adam(0.9, 0.999, 1e-8), values)
    parameter = torch.nn.Parameter(torch.zeros(values.shape[1]))
    optimizer = torch.optim.Adam([parameter], lr=1.0)
    for g in np.asarray(values):
        parameter.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(-ours.sum(0), parameter.detach().numpy(), atol=1e-5)


def test_moments_keep_the_dtype_of_the_parameters():
    updates, state = run(scale_by_adam(0.9, 0.999, 1e-8), gradients(2).astype(jnp.bfloat16))
    assert state.mu["x"].dtype == state.nu["x"].dtype == jnp.bfloat16
    assert np.isfinite(updates).all()


def test_weight_decay_spares_biases_and_the_scales_of_norms():
    config = OptimizerConfig(
        learning_rate=0.5, warmup_steps=0, schedule="constant", weight_decay=0.1
    )
    tx = make_optimizer(config, total_steps=3)
    params = {name: jnp.ones(2) for name in ("a", "bias", "kernel", "scale", "table")}
    updates: PyTree = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
    moved = {name: round(float(update[0]), 6) for name, update in updates.items()}
    assert moved == {"a": -0.05, "bias": 0, "kernel": -0.05, "scale": 0, "table": -0.05}
