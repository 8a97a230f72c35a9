"""Balance losses, expert load and router entropy of a routed layer. Padding can be masked out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.core.routers import Routing
from goat_jax.typing import Array, PyTree


class ExpertUse(NamedTuple):
    """The use of a layer's experts by its tokens.

    Attributes:
        load: the fraction of the tokens that each expert computes, times the loss's weight, (X,).
        probs: the mean of the tokens' probabilities, (X,).
    """

    load: Array
    probs: Array


def use_of_experts(
    logits: Array, chosen: Array, mask: Array | None, weight: float = 1.0
) -> ExpertUse:
    """Returns the use of experts for logits (..., X) and the chosen experts (..., K)."""
    load = weight * jax.nn.one_hot(chosen, logits.shape[-1], dtype=jnp.float32).sum(-2)
    probs = jax.nn.softmax(logits, axis=-1)
    return ExpertUse(_mean_over_tokens(load, mask), _mean_over_tokens(probs, mask))


def balance_of_layers(captured: PyTree) -> Array:
    """Computes transformers' load balancing loss ``X sum_i f_i P_i``, a scalar, with its weight.

    f and P are means over all tokens of all layers. The loss is K if balanced.

    Args:
        captured: a tree with the `ExpertUse` of layers, (X,) or (L, X) each; without any the loss
            is 0.

    >>> even = use_of_experts(jnp.zeros((4, 2)), jnp.array([[0], [1], [0], [1]]), None)
    >>> float(balance_of_layers({"layer": even}))
    1.0
    """
    leaves = jax.tree.leaves(captured, is_leaf=lambda node: isinstance(node, ExpertUse))
    uses = [leaf for leaf in leaves if isinstance(leaf, ExpertUse)]
    if not uses:
        return jnp.zeros((), jnp.float32)
    load, probs = (
        jnp.concatenate([jnp.atleast_2d(each) for each in arrays]).mean(0)
        for arrays in zip(*uses, strict=True)
    )
    return load.size * jnp.sum(load * probs)


def _mean_over_tokens(values: Array, mask: Array | None) -> Array:
    """Averages (..., E) over all tokens, or over those whose mask (...,) is non-zero, to (E,)."""
    flat = values.reshape(-1, values.shape[-1])
    if mask is None:
        return flat.mean(0)
    keep = jnp.broadcast_to(mask, values.shape[:-1]).reshape(-1, 1).astype(flat.dtype)
    return (flat * keep).sum(0) / jnp.maximum(keep.sum(), 1.0)


def expert_load(routing: Routing, mask: Array | None = None) -> Array:
    """Returns the fraction of tokens that select each expert, (E,); it sums to k."""
    return _mean_over_tokens(routing.selected.astype(jnp.float32), mask)


def mean_weights(routing: Routing, mask: Array | None = None) -> Array:
    """Returns the mean weight of each expert over the tokens, (E,); 0 where it is unselected."""
    return _mean_over_tokens(routing.weights.astype(jnp.float32), mask)


def router_entropy(routing: Routing, mask: Array | None = None) -> Array:
    """Returns the mean entropy in nats of the softmax over all experts: log E if uniform."""
    probs = jnp.maximum(routing.probs, 1e-30)
    entropy = -(routing.probs * jnp.log(probs)).sum(-1, keepdims=True)
    return _mean_over_tokens(entropy, mask)[0]


def balance_loss_published(routing: Routing, mask: Array | None = None) -> Array:
    """Computes the published code's balance loss ``E sum_i f_i P_i``, a scalar.

    f_i is the fraction of tokens that select expert i, P_i the mean over tokens of its full softmax
    probability. The loss is k if balanced and E on collapse. Only P carries a gradient, because f
    is a count.
    """
    load = expert_load(routing, mask)
    probs = _mean_over_tokens(routing.probs, mask)
    return probs.shape[-1] * jnp.sum(load * probs)


def threshold_balance(routing: Routing, mask: Array | None = None) -> Array:
    """Computes AdaMoLE's ``E sum_i f_i Q_i``: the published balance loss with margins as P.

    A margin may be negative, and then so may the loss. Only Q carries a gradient.
    """
    assert routing.margins is not None
    return balance_loss_published(routing._replace(probs=routing.margins), mask)


def localized_balance(
    routing: Routing, task_types: Array | None, delta: float, mask: Array | None = None
) -> Array:
    """Computes LoRAMoE's squared coefficient of variation of the experts' use, a scalar.

    The use (B, E) is the sum of an example's weights over its positions. It is multiplied by
    1 + delta for the half of the experts that belongs to the example's type, and by 1 - delta for
    the other half. The first half belongs to type 1. The variance is the unbiased one.

    Args:
        routing: the routing of the layer; its first axis is the batch.
        task_types: the types 0 or 1 of the examples' tasks, (B,); None leaves the use unweighted.
        delta: the strength of the localization.
        mask: non-zero for real tokens; None if all are.

    >>> ones = jnp.ones((2, 3, 4))
    >>> float(localized_balance(Routing(ones, ones, ones > 0), None, 0.0))
    0.0
    """
    weights = routing.weights
    if mask is not None:
        keep = jnp.broadcast_to(mask, weights.shape[:-1])[..., None].astype(weights.dtype)
        weights = weights * jnp.broadcast_to(keep, weights.shape)
    use = weights.sum(axis=tuple(range(1, weights.ndim - 1)))
    if task_types is not None:
        half = use.shape[-1] // 2
        first = jnp.where(jnp.arange(use.shape[-1]) < half, 1, 0)
        right = task_types.astype(jnp.int32)[:, None] == jnp.broadcast_to(first, use.shape)
        use = use * jnp.where(right, 1.0 + delta, 1.0 - delta)
    if use.size == 1:
        return jnp.zeros((), jnp.float32)
    return use.var(ddof=1) / (jnp.square(use.mean()) + 1e-10)


def balance_loss(routing: Routing, mask: Array | None = None) -> Array:
    """Computes the paper's balance loss (appendix C), a scalar that is 1 if balanced.

    It is ``sum_i f_i P_i`` with f_i = E / (k T) * count_i.

    >>> from goat_jax.core.routers import route_top_k
    >>> logits = jnp.array([[3.0, 2, 0, 0], [0, 0, 3, 2]])
    >>> round(float(balance_loss(route_top_k(logits, 2))), 4)
    1.0
    """
    load = expert_load(routing, mask)
    return balance_loss_published(routing, mask) / jnp.maximum(load.sum(), 1e-9)
