"""Balance losses of a routed layer, and the load they watch over. Padding may be masked out."""

import jax.numpy as jnp

from goat_jax.core.routers import Routing
from goat_jax.typing import Array


def _mean_over_tokens(values: Array, mask: Array | None) -> Array:
    """Mean of (..., E) over all tokens, or over those whose mask (...,) is non-zero: (E,)."""
    flat = values.reshape(-1, values.shape[-1])
    if mask is None:
        return flat.mean(0)
    keep = jnp.broadcast_to(mask, values.shape[:-1]).reshape(-1, 1).astype(flat.dtype)
    return (flat * keep).sum(0) / jnp.maximum(keep.sum(), 1.0)


def expert_load(routing: Routing, mask: Array | None = None) -> Array:
    """Share of the tokens that select each expert (E,): it sums to k."""
    return _mean_over_tokens(routing.selected.astype(jnp.float32), mask)


def router_entropy(routing: Routing, mask: Array | None = None) -> Array:
    """Mean entropy in nats of the tokens' softmax over all experts: log E when undecided."""
    probs = jnp.maximum(routing.probs, 1e-30)
    entropy = -(routing.probs * jnp.log(probs)).sum(-1, keepdims=True)
    return _mean_over_tokens(entropy, mask)[0]


def balance_loss_published(routing: Routing, mask: Array | None = None) -> Array:
    """The published code's ``E sum_i f_i P_i``, f_i = share of tokens selecting i: a scalar.

    P_i is the mean over tokens of the full softmax. It is k when balanced and E on collapse; only P
    carries a gradient (f counts).
    """
    load = expert_load(routing, mask)
    probs = _mean_over_tokens(routing.probs, mask)
    return probs.shape[-1] * jnp.sum(load * probs)


def balance_loss(routing: Routing, mask: Array | None = None) -> Array:
    """The paper's (appendix C) ``sum_i f_i P_i`` with f_i = E / (k T) * count_i: 1 when balanced.

    >>> from goat_jax.core.routers import route_top_k
    >>> logits = jnp.array([[3.0, 2, 0, 0], [0, 0, 3, 2]])
    >>> round(float(balance_loss(route_top_k(logits, 2))), 4)
    1.0
    """
    load = expert_load(routing, mask)
    return balance_loss_published(routing, mask) / jnp.maximum(load.sum(), 1e-9)
