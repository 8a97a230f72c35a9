"""Constant weights of experts, against least squares over the outputs themselves."""

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.core.gate_fit import gate_equations, solve_gates


def test_the_weights_are_those_of_least_squares_over_the_real_tokens():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 5, 3, 2))
    b = jax.random.normal(keys[1], (3, 2, 7))
    weights = jax.nn.softmax(3 * jax.random.normal(keys[2], (2, 5, 3)))
    mask = jnp.ones((2, 5), jnp.int32).at[1, 3:].set(0)
    halves = [gate_equations(hidden[n], b, weights[n], mask[n]) for n in (0, 1)]
    gates = solve_gates(np.sum(np.asarray(halves), 0))
    real = np.asarray(mask, bool)
    experts = np.einsum("ter,ero->teo", np.asarray(hidden)[real], b)
    routed = np.einsum("te,teo->to", np.asarray(weights)[real], experts)
    best = np.linalg.lstsq(experts.swapaxes(1, 2).reshape(-1, 3), routed.ravel(), rcond=None)[0]
    np.testing.assert_allclose(gates, best, atol=1e-5)
