"""Routers: from tokens to the weight of every expert, always in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.core.precision import wide
from goat_jax.typing import Array


class Routing(NamedTuple):
    """How every token uses the experts.

    Attributes:
        weights: (..., E) float32, zero where an expert is not selected.
        probs: (..., E) float32, softmax of the logits over all experts.
        selected: (..., E) bool, the experts that were chosen.
        margins: (..., E) float32, how far every probability is above the token's own threshold;
            None where there is none.
    """

    weights: Array
    probs: Array
    selected: Array
    margins: Array | None = None


def router_logits(x: Array, router: Array) -> Array:
    """``x @ router`` (..., E) in float32, whatever the dtype of x (..., I); router is (I, E)."""
    # Accelerators multiply float32 in fewer bits unless asked, and that can change the choice.
    dtype = wide(x.dtype)
    return jnp.dot(x.astype(dtype), router.astype(dtype), precision="highest")


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


def route_top_k_masked(logits: Array, top_k: int) -> Routing:
    """Keeps the k most probable experts with the probabilities they have, which sum to less than 1.

    What the published MoLoRA code does when it is given a top_k.
    """
    chosen = route_top_k(logits, top_k)
    return chosen._replace(weights=jnp.where(chosen.selected, chosen.probs, 0.0))


def route_top_p(logits: Array, p: float) -> Routing:
    """Keeps the fewest experts whose probabilities reach p together, renormalised to sum to 1.

    The most probable one is always among them. (The paper's appendix compares p = 0.25 with top-k.)

    >>> r = route_top_p(jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]])), p=0.7)
    >>> [round(float(weight), 3) for weight in r.weights[0]]
    [0.625, 0.375, 0.0, 0.0]
    """
    probs = jax.nn.softmax(logits, axis=-1)
    num_experts = probs.shape[-1]
    mine, other = probs[..., :, None], probs[..., None, :]
    earlier = jnp.tril(jnp.ones((num_experts, num_experts), bool), -1)
    earlier = jnp.broadcast_to(earlier, jnp.broadcast_shapes(mine.shape, other.shape))
    ahead = (other > mine) | ((other == mine) & earlier)
    before = jnp.where(ahead, jnp.broadcast_to(other, ahead.shape), 0.0).sum(-1)
    selected = before < p
    return Routing(_shares(jnp.where(selected, probs, 0.0)), probs, selected)


def route_threshold(logits: Array, threshold: Array) -> Routing:
    """AdaMoLE: experts whose probability reaches the token's threshold (..., 1), by their margin.

    w_i = q_i / sum of the selected q, with q = probability - threshold. With a threshold of at most
    1 / E an expert is always selected.

    >>> r = route_threshold(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), jnp.array([[0.25]]))
    >>> [round(float(weight), 3) for weight in r.weights[0]]
    [0.833, 0.167, 0.0]
    """
    probs = jax.nn.softmax(logits, axis=-1)
    margins = probs - jnp.broadcast_to(threshold, probs.shape)
    selected = margins >= 0
    return Routing(_shares(jnp.where(selected, margins, 0.0)), probs, selected, margins)


def route_with_shared(logits: Array, top_k: int) -> Routing:
    """The first expert for every token with weight 1, besides the k best of the E - 1 others.

    Args:
        logits: (..., E - 1), of all experts but the first, which has none and probability 0.

    >>> route_with_shared(jnp.array([[2.0, 0.0]]), 1).weights
    Array([[1., 1., 0.]], dtype=float32)
    """
    routed = route_top_k(logits, top_k)
    first = jnp.ones_like(routed.probs[..., :1])

    def put(value: Array, others: Array) -> Array:
        return jnp.concatenate([value.astype(others.dtype), others], axis=-1)

    return Routing(
        put(first, routed.weights), put(0 * first, routed.probs), put(first, routed.selected)
    )


def _shares(values: Array) -> Array:
    """Divided by their sum over the experts; zeros where that is zero."""
    total = values.sum(-1, keepdims=True)
    return values / jnp.broadcast_to(jnp.where(total == 0, 1.0, total), values.shape)


def route_softmax(logits: Array) -> Routing:
    """Uses every expert with its softmax probability."""
    probs = jax.nn.softmax(logits, axis=-1)
    return Routing(probs, probs, jnp.ones_like(probs, bool))


def route_all(shape: tuple[int, ...], num_experts: int) -> Routing:
    """No router: every expert with weight 1 (plain LoRA is its case E = 1)."""
    ones = jnp.ones((*shape, num_experts), jnp.float32)
    return Routing(ones, ones / num_experts, ones > 0)
