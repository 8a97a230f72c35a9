"""The two forms of the balance loss, padding, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.core.aux_losses import (
    balance_loss,
    balance_loss_published,
    expert_load,
    router_entropy,
)
from goat_jax.core.routers import route_all, route_softmax, route_top_k
from goat_jax.testing import assert_close

EXPERTS, TOP_K = 6, 2
FORMS = {"paper": balance_loss, "published": balance_loss_published}


def random_logits(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, EXPERTS)), jnp.float32)


def exact(logits, top_k, form, keep=None):
    """Both forms from the paper's text, in float64: counts and means over the kept tokens."""
    z = np.asarray(logits, np.float64).reshape(-1, EXPERTS)
    z = z if keep is None else z[np.asarray(keep).ravel() != 0]
    probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    counts = (z >= np.sort(z, -1)[:, [-top_k]]).sum(0)
    share = counts / len(z) * EXPERTS
    return ((share / top_k if form == "paper" else share) * probs.mean(0)).sum()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_value(form, top_k):
    logits = random_logits(5, 8)
    loss = FORMS[form](route_top_k(logits, top_k))
    assert loss.dtype == jnp.float32
    assert_close(loss, exact(logits, top_k, form), 1e-6)


def test_balanced_routing_costs_one_in_the_paper_and_k_in_the_code():
    # Every expert is first once and second once, with the same logits.
    logits = jnp.asarray([np.roll([2.0, 1, 0, 0, 0, 0], i) for i in range(EXPERTS)], jnp.float32)
    routing = route_top_k(logits, TOP_K)
    np.testing.assert_allclose(balance_loss(routing), 1.0, rtol=1e-6)
    np.testing.assert_allclose(balance_loss_published(routing), TOP_K, rtol=1e-6)
    np.testing.assert_allclose(expert_load(routing), TOP_K / EXPERTS, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_collapse_onto_one_expert_costs_the_number_of_experts(form):
    logits = jnp.broadcast_to(jnp.array([50.0, 0, 0, 0, 0, 0]), (16, EXPERTS))
    np.testing.assert_allclose(FORMS[form](route_top_k(logits, 1)), EXPERTS, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_dense_and_absent_routers(form):
    # All experts are selected, so both forms only see that the probabilities sum to 1.
    expected = {"paper": 1.0, "published": EXPERTS}[form]
    np.testing.assert_allclose(FORMS[form](route_softmax(random_logits(9))), expected, 1e-6)
    np.testing.assert_allclose(FORMS[form](route_all((9,), EXPERTS)), expected, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_masked_padding_is_the_same_as_no_padding(form):
    logits = random_logits(4, 7, seed=1)
    keep = np.array([[1] * 7, [1] * 3 + [0] * 4, [1] + [0] * 6, [1] * 5 + [0] * 2])
    loss = jax.jit(lambda z: FORMS[form](route_top_k(z, TOP_K), jnp.asarray(keep)))
    dropped = FORMS[form](route_top_k(logits[keep != 0], TOP_K))
    assert_close(loss(logits), dropped, 2e-7)
    assert_close(dropped, exact(logits, TOP_K, form, keep), 1e-6)
    # Whatever stands in the padding: not one bit changes.
    other = jnp.where(jnp.asarray(keep[..., None] != 0), logits, random_logits(4, 7, seed=2) * 9)
    np.testing.assert_array_equal(loss(other), loss(logits))
    unmasked = FORMS[form](route_top_k(logits, TOP_K))
    assert abs(unmasked - dropped) > 1e-3, "the mask must matter here"


def test_load_and_entropy_leave_padding_out():
    logits = random_logits(3, 4, seed=3)
    keep = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    routing = route_top_k(logits, TOP_K)
    alone = route_top_k(logits[keep != 0], TOP_K)
    load = expert_load(routing, jnp.asarray(keep))
    np.testing.assert_allclose(load, np.asarray(alone.selected).mean(0), rtol=1e-6)
    np.testing.assert_allclose(load.sum(), TOP_K, rtol=1e-6)
    p = np.asarray(alone.probs, np.float64)
    entropy = -(p * np.log(p)).sum(-1).mean()
    assert_close(router_entropy(routing, jnp.asarray(keep)), entropy)
    np.testing.assert_allclose(router_entropy(route_all((3,), EXPERTS)), np.log(EXPERTS), 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_all_padding_costs_nothing_and_is_finite(form):
    keep = jnp.zeros((5,))
    assert FORMS[form](route_top_k(random_logits(5), TOP_K), keep) == 0


@pytest.mark.parametrize("form", FORMS)
def test_only_the_probabilities_carry_a_gradient(form):
    logits = random_logits(10)
    gradient = jax.jit(jax.grad(lambda z: FORMS[form](route_top_k(z, TOP_K))))(logits)
    z = np.asarray(logits, np.float64)
    probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    load = (z >= np.sort(z, -1)[:, [-TOP_K]]).mean(0)
    factor = EXPERTS / (TOP_K if form == "paper" else 1) / len(z)
    # d/dz of factor * sum_i load_i sum_t P_ti with the load held constant.
    expected = factor * probs * (load - (probs * load).sum(-1, keepdims=True))
    assert_close(gradient, expected)
