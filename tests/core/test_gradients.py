"""All gradients of a routed layer against finite differences of a float64 restatement in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.core.aux_losses import balance_loss, balance_loss_published
from goat_jax.core.dispatch import dispatch
from goat_jax.core.products import router_logits
from goat_jax.core.routers import route_top_k

TOKENS, IN, OUT, EXPERTS, RANK = 7, 6, 5, 4, 2
NAMES = ("x", "a", "b", "router")
SCALE = np.array([2.0, 2.5, 3.0, 4.0])
STEP = 1e-4
COEF = 0.3


def point():
    rng = np.random.default_rng(11)
    shapes = ((TOKENS, IN), (EXPERTS, IN, RANK), (EXPERTS, RANK, OUT), (IN, EXPERTS))
    values = {n: rng.normal(size=shape) for n, shape in zip(NAMES, shapes, strict=True)}
    # Float32 values, so that both sides are evaluated at the same point.
    return {n: v.astype(np.float32).astype(np.float64) for n, v in values.items()}


TARGET = np.random.default_rng(12).normal(size=(TOKENS, OUT))


def by_hand(x, a, b, router, top_k, published):
    """The loss and the margin by which the k-th expert beats the next, all in float64."""
    z = x @ router
    order = np.sort(z, -1)
    margin = (order[:, -top_k] - order[:, -top_k - 1]).min() if top_k < EXPERTS else np.inf
    chosen = z >= order[:, [-top_k]]
    weights = np.where(chosen, np.exp(z), 0)
    weights /= weights.sum(-1, keepdims=True)
    delta = sum(weights[:, [i]] * SCALE[i] * (x @ a[i] @ b[i]) for i in range(EXPERTS))
    probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    aux = EXPERTS * (chosen.mean(0) * probs.mean(0)).sum() / (1 if published else top_k)
    return ((delta - TARGET) ** 2).mean() + COEF * aux, margin


def ours(x, a, b, router, top_k, published):
    routing = route_top_k(router_logits(x, router), top_k)
    gate = routing.weights * jnp.broadcast_to(jnp.float32(SCALE), routing.weights.shape)
    delta = dispatch(x, a, b, gate)
    form = balance_loss_published if published else balance_loss
    return jnp.square(delta - jnp.float32(TARGET)).mean() + COEF * form(routing)


@pytest.mark.parametrize(("top_k", "published"), [(1, False), (2, True), (2, False), (4, False)])
def test_directional_derivatives(top_k, published):
    at = point()
    value, margin = by_hand(**at, top_k=top_k, published=published)
    assert margin > 20 * STEP, "a step must not change which experts are chosen"
    arguments = [jnp.asarray(at[name], jnp.float32) for name in NAMES]
    step = jax.value_and_grad(
        lambda x, a, b, router: ours(x, a, b, router, top_k, published), argnums=(0, 1, 2, 3)
    )
    loss, gradients = jax.jit(step)(*arguments)
    np.testing.assert_allclose(loss, value, rtol=1e-5)

    rng = np.random.default_rng(0)
    for name, gradient in zip(NAMES, gradients, strict=True):
        if top_k == 1 and name == "router":
            assert np.abs(gradient).max() > 0, "the balance loss alone moves a top-1 router"
        for _ in range(5):
            direction = rng.normal(size=at[name].shape)
            ahead, behind = (
                by_hand(**{**at, name: at[name] + s * direction}, top_k=top_k, published=published)
                for s in (STEP, -STEP)
            )
            slope = (ahead[0] - behind[0]) / (2 * STEP)
            got = (np.asarray(gradient, np.float64) * direction).sum()
            scale = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
            np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
