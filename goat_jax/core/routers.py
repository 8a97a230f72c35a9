"""Routers: from tokens to the weight of every expert, always in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.typing import Array


class Routing(NamedTuple):
    """How every token uses the experts.

    Attributes:
        weights: (..., E) float32, zero where an expert is not selected.
        probs: (..., E) float32, softmax of the logits over all experts.
        selected: (..., E) bool, the experts that were chosen.
    """

    weights: Array
    probs: Array
    selected: Array


def router_logits(x: Array, router: Array) -> Array:
    """``x @ router`` (..., E) in float32, whatever the dtype of x (..., I); router is (I, E)."""
    # Accelerators multiply float32 in fewer bits unless asked, and that can change the choice.
    return jnp.dot(x.astype(jnp.float32), router.astype(jnp.float32), precision="highest")


def route_top_k(logits: Array, top_k: int) -> Routing:
    """Keeps the k most probable experts of each token, weights renormalised to sum to 1.

    A softmax over the selected logits (paper eq. 10): the same numbers as softmax over all experts,
    top-k, division by the selected sum.

    >>> r = route_top_k(jnp.log(jnp.array([[0.6, 0.2, 0.2]])), top_k=1)
    >>> r.weights
    Array([[1., 0., 0.]], dtype=float32)
    """
    probs = jax.nn.softmax(logits, axis=-1)
    chosen, experts = jax.lax.top_k(logits, top_k)
    # one-hot instead of a scatter: its transpose is a product too, which every backend likes.
    one_hot = jax.nn.one_hot(experts, probs.shape[-1], dtype=probs.dtype)
    # A second softmax, not a division of the probabilities: with k = 1 its gradient is exactly 0,
    # where the quotient's is rounding noise that Adam would blow up to whole steps of the router.
    share = jax.nn.softmax(chosen, axis=-1)
    weights = jnp.einsum("...K,...KE->...E", share, one_hot, precision="highest")
    return Routing(weights, probs, one_hot.sum(-2) > 0)


def route_softmax(logits: Array) -> Routing:
    """Uses every expert with its softmax probability."""
    probs = jax.nn.softmax(logits, axis=-1)
    return Routing(probs, probs, jnp.ones_like(probs, bool))


def route_all(shape: tuple[int, ...], num_experts: int) -> Routing:
    """No router: every expert with weight 1 (plain LoRA is its case E = 1)."""
    ones = jnp.ones((*shape, num_experts), jnp.float32)
    return Routing(ones, ones / num_experts, ones > 0)
