"""Column lengths, Gram norms and balance losses of the other methods, against numpy by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.core.aux_losses import localized_balance, threshold_balance
from goat_jax.core.column_norms import column_norms, scaled_sum
from goat_jax.core.orthogonality import gram_norms
from goat_jax.core.routers import Routing, route_threshold
from goat_jax.testing import assert_close


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_column_norms_are_those_of_the_sum():
    kernel, a, b = random(9, 6), random(3, 9, 2, seed=1), random(3, 2, 6, seed=2)
    scale = np.array([1.0, 0.5, 3.0], np.float32)
    whole = kernel + sum(scale[i] * a[i] @ b[i] for i in range(3))
    got = jax.jit(column_norms)(kernel, a, b, scale)
    np.testing.assert_allclose(got, np.linalg.norm(whole, axis=0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_column_norms_of_constant_factors_are_right(value):
    # Not an argument, so that the compiler knows it.
    kernel, a, b = random(64, 1536), random(1, 64, 8, seed=1), jnp.full((1, 8, 1536), value)
    got = jax.jit(lambda kernel, a: column_norms(kernel, a, b, jnp.ones(1)))(kernel, a)
    np.testing.assert_allclose(got, np.linalg.norm(kernel + a[0] @ b[0], axis=0), rtol=1e-5)


@pytest.mark.parametrize("published", [False, True])
def test_gram_norms_and_their_gradients(published):
    """The large Gram matrices are made here, and nowhere in the package."""
    a, b = random(2, 7, 3) * 0.5, random(2, 3, 5, seed=1) * 0.5

    def by_hand(a, b):
        grams = (
            [a[i] @ a[i].T for i in range(2)] + [b[i].T @ b[i] for i in range(2)]
            if published
            else [a[i].T @ a[i] for i in range(2)] + [b[i] @ b[i].T for i in range(2)]
        )
        return sum(jnp.sqrt(jnp.square(gram - jnp.eye(len(gram))).sum()) for gram in grams)

    def ours(a, b):
        return sum(norm.sum() for norm in gram_norms(a, b, published))

    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(a, b) for f in (ours, by_hand))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for one, other in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_norm_of_zero_has_a_gradient_of_zero():
    eye = jnp.eye(4)[None, :, :2]
    slope = jax.grad(lambda a: gram_norms(a, jnp.swapaxes(a, 1, 2))[0].sum())(eye)
    np.testing.assert_array_equal(slope, 0.0)


def test_threshold_balance_uses_the_margins():
    logits, threshold = random(20, 4), np.full((20, 1), 0.2, np.float32)
    routing = jax.jit(route_threshold)(logits, threshold)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    load, margin = (probs >= 0.2).mean(0), (probs - 0.2).mean(0)
    np.testing.assert_allclose(threshold_balance(routing), 4 * (load * margin).sum(), rtol=1e-5)
    np.testing.assert_allclose(routing.weights.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_localized_balance(delta):
    weights = np.abs(random(3, 5, 4))
    types = np.array([1, 0, 1])
    factor = np.where(types[:, None] == np.array([1, 1, 0, 0]), 1 + delta, 1 - delta)
    use = weights.sum(1) * factor
    routing = Routing(jnp.asarray(weights), jnp.asarray(weights), jnp.asarray(weights > 0))
    got = localized_balance(routing, jnp.asarray(types), delta)
    np.testing.assert_allclose(got, use.var(ddof=1) / use.mean() ** 2, rtol=1e-5)


def test_the_use_of_one_expert_by_one_example_is_balanced():
    ones = jnp.ones((1, 3, 1))
    assert localized_balance(Routing(ones, ones, ones > 0), None, 0.0) == 0


@pytest.mark.parametrize("first", [0.7, 0.0])
def test_the_scaled_sum_s_gradients_come_from_its_result(first):
    """Also those of a factor of zero, where nothing can be divided by it."""
    gain = jnp.asarray([first, -1.5, 1e-3])
    product, delta, weights = (random(2, 4, 3, seed=seed) for seed in range(3))

    def plain(gain, product, delta):
        return jnp.broadcast_to(gain, product.shape) * (product + delta)

    found, expected = (
        jax.vjp(f, gain, product, delta)[1](jnp.asarray(weights))
        for f in (jax.jit(scaled_sum), plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 1e-6)
