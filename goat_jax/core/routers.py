"""Routing functions: compute the experts' weights for every token, always in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from goat_jax.typing import Array

CHOICE = "router_choice"
"""Name of the selected experts for rematerialization policies."""


class Routing(NamedTuple):
    """Weights of the experts for every token, and the probabilities behind them.

    Attributes:
        weights: the experts' weights (..., E), float32, zero where an expert is not selected.
        probs: the softmax of the logits over all experts (..., E), float32.
        selected: a mask of the selected experts (..., E), bool.
        margins: each probability minus the token's threshold (..., E), float32; None for routers
            without threshold.
    """

    weights: Array
    probs: Array
    selected: Array
    margins: Array | None = None


def route_top_k(logits: Array, top_k: int) -> Routing:
    """Keeps the k most probable experts of each token, with weights renormalized to sum to 1.

    The weights are a softmax over the selected logits (paper eq. 10). They equal the softmax over
    all experts, restricted to the top k and divided by its sum.

    >>> r = route_top_k(jnp.log(jnp.array([[0.6, 0.2, 0.2]])), top_k=1)
    >>> r.weights
    Array([[1., 0., 0.]], dtype=float32)
    """
    count = logits.shape[-1]
    experts = jax.lax.top_k(logits, top_k)[1].astype(np.min_scalar_type(count - 1))
    # The numbers of the experts in a byte each are all that a backward pass keeps besides logits.
    experts = checkpoint_name(experts, CHOICE)
    # One-hot instead of a scatter, whose transpose is slow on some backends.
    selected = jax.nn.one_hot(experts, count, dtype=jnp.bool_).any(-2)
    # A second softmax instead of dividing the probabilities: with k = 1 its gradient is exactly 0.
    # The quotient's gradient would be rounding noise, which Adam scales up to full-size steps.
    weights = jax.nn.softmax(logits, axis=-1, where=selected)
    return Routing(weights, jax.nn.softmax(logits, axis=-1), selected)


def route_top_k_masked(logits: Array, top_k: int) -> Routing:
    """Keeps the k most probable experts with their probabilities, which sum to less than 1.

    The published MoLoRA code does this if top_k is set.
    """
    chosen = route_top_k(logits, top_k)
    return chosen._replace(weights=jnp.where(chosen.selected, chosen.probs, 0.0))


def route_top_p(logits: Array, p: float) -> Routing:
    """Keeps the fewest experts whose probabilities sum to at least p, renormalized to sum to 1.

    The most probable expert is always kept. (The paper's appendix compares p = 0.25 with top-k.)

    >>> r = route_top_p(jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]])), p=0.7)
    >>> [round(float(weight), 3) for weight in r.weights[0]]
    [0.625, 0.375, 0.0, 0.0]
    """
    probs = jax.nn.softmax(logits, axis=-1)
    num_experts = probs.shape[-1]
    each, other = probs[..., :, None], probs[..., None, :]
    earlier = jnp.tril(jnp.ones((num_experts, num_experts), bool), -1)
    earlier = jnp.broadcast_to(earlier, jnp.broadcast_shapes(each.shape, other.shape))
    ahead = (other > each) | ((other == each) & earlier)
    before = jnp.where(ahead, jnp.broadcast_to(other, ahead.shape), 0.0).sum(-1)
    selected = before < p
    return Routing(_normalized(jnp.where(selected, probs, 0.0)), probs, selected)


def route_threshold(logits: Array, threshold: Array) -> Routing:
    """Keeps the experts whose probability reaches the token's threshold, as in AdaMoLE.

    The weights are w_i = q_i / (sum of the selected q), with q = probability - threshold. If the
    threshold is at most 1 / E, at least one expert is always selected.

    Args:
        logits: the router's logits (..., E).
        threshold: each token's threshold (..., 1).

    >>> r = route_threshold(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), jnp.array([[0.25]]))
    >>> [round(float(weight), 3) for weight in r.weights[0]]
    [0.833, 0.167, 0.0]
    """
    probs = jax.nn.softmax(logits, axis=-1)
    margins = probs - jnp.broadcast_to(threshold, probs.shape)
    selected = margins >= 0
    return Routing(_normalized(jnp.where(selected, margins, 0.0)), probs, selected, margins)


def route_with_shared(logits: Array, top_k: int) -> Routing:
    """Uses the first expert for every token with weight 1, and the k best of the E - 1 others.

    Args:
        logits: the logits (..., E - 1) of all experts except the first, whose probability is 0.
        top_k: the number of experts kept besides the first.

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


def _normalized(values: Array) -> Array:
    """Divides the values by their sum over the experts; zeros stay zeros if the sum is zero."""
    total = values.sum(-1, keepdims=True)
    return values / jnp.broadcast_to(jnp.where(total == 0, 1.0, total), values.shape)


def route_softmax(logits: Array) -> Routing:
    """Uses every expert with its softmax probability."""
    probs = jax.nn.softmax(logits, axis=-1)
    return Routing(probs, probs, jnp.ones_like(probs, bool))


def route_all(shape: tuple[int, ...], num_experts: int) -> Routing:
    """Uses every expert with weight 1, without a router (plain LoRA is the case E = 1)."""
    ones = jnp.ones((*shape, num_experts), jnp.float32)
    return Routing(ones, ones / num_experts, ones > 0)
