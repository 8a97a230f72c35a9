"""The two forms of the balance loss, padding, and where gradients go."""

from functools import partial

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


@partial(jax.jit, static_argnums=(0, 2))
def loss_of(form, logits, top_k=TOP_K, mask=None):
    return FORMS[form](route_top_k(logits, top_k), mask)


def random_logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, EXPERTS)).astype(np.float32)


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
    loss = loss_of(form, logits, top_k)
    assert loss.dtype == jnp.float32
    assert_close(loss, exact(logits, top_k, form), 1e-6)


def test_balanced_routing_costs_one_in_the_paper_and_k_in_the_code():
    # Every expert is first once and second once, with the same logits.
    first = np.array([2, 1, 0, 0, 0, 0], np.float32)
    logits = np.stack([np.roll(first, i) for i in range(EXPERTS)])
    np.testing.assert_allclose(loss_of("paper", logits), 1.0, rtol=1e-6)
    np.testing.assert_allclose(loss_of("published", logits), TOP_K, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_collapse_onto_one_expert_costs_the_number_of_experts(form):
    logits = np.array([[50, 0, 0, 0, 0, 0]] * 16, np.float32)
    np.testing.assert_allclose(loss_of(form, logits, 1), EXPERTS, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_dense_and_absent_routers(form):
    # All experts are selected, so both forms only see that the probabilities sum to 1.
    expected = {"paper": 1.0, "published": EXPERTS}[form]
    for routing in (route_softmax(jnp.asarray(random_logits(9))), route_all((9,), EXPERTS)):
        np.testing.assert_allclose(FORMS[form](routing), expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_masked_padding_is_the_same_as_no_padding(form):
    logits = random_logits(4, 7, seed=1)
    keep = np.array([[1] * 7, [1] * 3 + [0] * 4, [1] + [0] * 6, [1] * 5 + [0] * 2])
    dropped = loss_of(form, logits[keep != 0])
    masked = loss_of(form, logits, TOP_K, keep)
    assert_close(masked, dropped, 2e-7)
    assert_close(dropped, exact(logits, TOP_K, form, keep), 1e-6)
    # Whatever stands in the padding: not one bit changes.
    other = np.where(keep[..., None] != 0, logits, random_logits(4, 7, seed=2) * 9)
    np.testing.assert_array_equal(loss_of(form, other, TOP_K, keep), masked)
    assert abs(loss_of(form, logits) - dropped) > 1e-3, "the mask must matter here"


def test_load_and_entropy_leave_padding_out():
    logits = random_logits(3, 4, seed=3)
    keep = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])

    @jax.jit
    def load_and_entropy(z, mask):
        routing = route_top_k(z, TOP_K)
        return expert_load(routing, mask), router_entropy(routing, mask)

    load, entropy = load_and_entropy(logits, keep)
    z = logits[keep != 0].astype(np.float64)
    np.testing.assert_allclose(load, (z >= np.sort(z, -1)[:, [-TOP_K]]).mean(0), rtol=1e-6)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    assert_close(entropy, -(p * np.log(p)).sum(-1).mean())
    undecided = load_and_entropy(np.zeros_like(logits), keep)[1]
    np.testing.assert_allclose(undecided, np.log(EXPERTS), rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_all_padding_costs_nothing_and_is_finite(form):
    assert loss_of(form, random_logits(4, 7), TOP_K, np.zeros((4, 7), np.int64)) == 0


@pytest.mark.parametrize("form", FORMS)
def test_only_the_probabilities_carry_a_gradient(form):
    logits = random_logits(10)
    gradient = jax.jit(jax.grad(lambda z: loss_of(form, z)))(logits)
    z = np.asarray(logits, np.float64)
    probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    load = (z >= np.sort(z, -1)[:, [-TOP_K]]).mean(0)
    factor = EXPERTS / (TOP_K if form == "paper" else 1) / len(z)
    # d/dz of factor * sum_i load_i sum_t P_ti with the load held constant.
    expected = factor * probs * (load - (probs * load).sum(-1, keepdims=True))
    assert_close(gradient, expected)
