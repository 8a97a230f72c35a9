"""Routing: weights, which experts, in float32, and the statistics of Lemma 3.3."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from goat_jax.core.products import router_logits
from goat_jax.core.routers import route_all, route_softmax, route_top_k
from goat_jax.testing import assert_close

EXPERTS = 8
ROUTE = jax.jit(route_top_k, static_argnums=1)


def random_logits(tokens=64, spread=1.0, seed=0):
    logits = np.random.default_rng(seed).normal(size=(tokens, EXPERTS)) * spread
    return logits.astype(np.float32)


@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_weights_are_the_softmax_of_the_selected_logits(top_k):
    logits = random_logits()
    routing = ROUTE(logits, top_k)
    exact = np.asarray(logits, np.float64)
    chosen = exact >= np.sort(exact, -1)[:, [-top_k]]
    powers = np.where(chosen, np.exp(exact), 0)
    assert_close(routing.weights, powers / powers.sum(-1, keepdims=True), 1e-6)
    assert_close(routing.probs, np.exp(exact) / np.exp(exact).sum(-1, keepdims=True), 1e-6)
    np.testing.assert_array_equal(routing.selected, chosen)
    assert ((np.asarray(routing.weights) > 0).sum(-1) == top_k).all()
    np.testing.assert_allclose(np.asarray(routing.weights).sum(-1), 1.0, rtol=1e-6)


def test_ties_still_select_exactly_k():
    routing = ROUTE(np.zeros((64, EXPERTS), np.float32), 2)
    assert (np.asarray(routing.selected).sum(-1) == 2).all()
    np.testing.assert_allclose(np.asarray(routing.weights).sum(-1), 1.0, rtol=1e-6)


def test_extreme_logits_stay_finite():
    logits = random_logits(spread=1000.0)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slope(z):
        routing = route_top_k(z, 2)
        return (routing.weights + routing.probs)[:, 0].sum(), routing

    gradient, routing = slope(logits)
    assert all(np.isfinite(array).all() for array in (gradient, *routing[:3]))
    # Far behind experts underflow to probability 0; the ones that are kept still sum to 1.
    np.testing.assert_allclose(np.asarray(routing.weights).sum(-1), 1.0, rtol=1e-6)


def test_a_single_expert_has_weight_one_whatever_its_logit():
    """Its gradient is 0 to the last bit: Adam would blow rounding noise up to whole steps."""
    weigh = random_logits(seed=1)
    slope = jax.jit(jax.grad(lambda z: (route_top_k(z, 1).weights * weigh).sum()))
    assert not np.asarray(slope(random_logits())).any()


def test_gradient_reaches_only_the_selected_logits():
    logits = random_logits()
    weigh = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda z: (route_top_k(z, 2).weights * weigh).sum()))(logits)
    selected = np.asarray(ROUTE(logits, 2).selected)
    # Softmax over the selected: d w_i / d z_j = w_i (1[i = j] - w_j).
    weights = np.asarray(ROUTE(logits, 2).weights, np.float64)
    expected = weights * (weigh - (weights * weigh).sum(-1, keepdims=True))
    assert_close(gradient, expected)
    assert np.abs(np.asarray(gradient)[~selected]).max() < 1e-7


def test_logits_of_bfloat16_tokens_are_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 256)).astype(ml_dtypes.bfloat16))
    router = jnp.asarray(rng.normal(size=(256, EXPERTS)).astype(np.float32))
    logits = router_logits(x, router)
    assert logits.dtype == jnp.float32
    exact = np.asarray(x, np.float64) @ np.asarray(router, np.float64)
    assert_close(logits, exact, 1e-6)
    rough = jnp.dot(x, router.astype(jnp.bfloat16))
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(rough, exact, 1e-4)
    # Not only accurate here: accelerators are told to use all of float32's bits.
    with jax.default_matmul_precision("default"):
        assert "HIGHEST" in str(jax.make_jaxpr(router_logits)(x, router))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_lemma_3_3_mean_and_variance(top_k):
    """E[w_i] = 1/E; Var(w_i) = (E - k) / (k E^2), exact as the logits become equal."""
    weights = np.asarray(ROUTE(random_logits(100_000, 0.001, seed=2), top_k).weights, np.float64)
    np.testing.assert_allclose(weights.mean(0), 1 / EXPERTS, rtol=0.03)
    np.testing.assert_allclose(weights.mean(), 1 / EXPERTS, rtol=1e-6)
    published = (EXPERTS - top_k) / (top_k * EXPERTS**2)
    np.testing.assert_allclose(((weights - 1 / EXPERTS) ** 2).mean(), published, rtol=0.002)


def test_lemma_3_3_is_a_lower_bound_for_spread_logits():
    # methods.md 22.7: 0.0536 at standard deviation 1, against the lemma's 0.046875.
    weights = np.asarray(ROUTE(random_logits(100_000, seed=3), 2).weights, np.float64)
    np.testing.assert_allclose(((weights - 1 / EXPERTS) ** 2).mean(), 0.0536, rtol=0.01)


def test_softmax_router_uses_every_expert():
    routing = jax.jit(route_softmax)(random_logits())
    np.testing.assert_array_equal(routing.weights, routing.probs)
    np.testing.assert_allclose(np.asarray(routing.weights).sum(-1), 1.0, rtol=1e-6)
    assert np.asarray(routing.selected).all()


def test_no_router_gives_every_expert_weight_one():
    weights, probs, selected = (np.asarray(v) for v in route_all((2, 3), 4)[:3])
    assert weights.shape == (2, 3, 4) and (weights == 1).all()
    assert selected.all() and (probs == 0.25).all()
