"""Assignment of tokens to the experts of a mixture, and its arrangement in blocks of one expert.

Every expert's tokens fill whole blocks of equal size, so that each block is a plain matrix product
with one expert's kernel and all shapes are known beforehand. No token is ever dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.typing import Array

SMALLEST, LARGEST = 8, 256
"""Bounds of a block's size."""


def choose_experts(logits: Array, per_token: int, normalize: bool) -> tuple[Array, Array]:
    """Chooses the experts with the largest logits for every token.

    Args:
        logits: the router's logits (..., X), float32.
        per_token: the number K of experts per token.
        normalize: whether the weights sum to 1; else they are the softmax over all X experts.

    Returns:
        Weights (..., K) and experts (..., K).

    >>> choose_experts(jnp.log(jnp.array([0.5, 0.3, 0.2])), 1, normalize=False)[0]
    Array([0.5], dtype=float32)
    """
    top, experts = jax.lax.top_k(logits, per_token)
    if normalize:
        return jax.nn.softmax(top, axis=-1), experts
    return jnp.exp(top - jax.nn.logsumexp(logits, axis=-1, keepdims=True)), experts


class Blocks(NamedTuple):
    """Arrangement of N assignments (a token and one of its experts) in n blocks of equal size.

    Attributes:
        sources: the assignment in each slot (n, size); N where the slot is empty.
        places: the slot of each assignment (N,), counted through all blocks.
        experts: the expert of each block (n,).
    """

    sources: Array
    places: Array
    experts: Array


def block_size(assignments: int, experts: int) -> int:
    """Returns the number of slots in a block: about a quarter of an expert's even share.

    Larger blocks are quicker to multiply, smaller ones leave fewer slots empty.

    >>> block_size(4096, 8), block_size(10, 128)
    (128, 8)
    """
    share = max(1, assignments // (4 * experts))
    return min(LARGEST, max(SMALLEST, 1 << (share.bit_length() - 1)))


def arrange(chosen: Array, experts: int) -> Blocks:
    """Arranges assignments in blocks, each expert's in their order.

    Args:
        chosen: the expert of each assignment (N,).
        experts: the number X of experts.

    >>> arrange(jnp.array([1, 0, 1]), 2).experts
    Array([0, 1], dtype=int32)
    """
    total = len(chosen)
    size = block_size(total, experts)
    # Every expert's last block may be partly empty, and no block in use is empty.
    number = min(total // size + experts, total)
    # Counting instead of sorting compiles in a tenth of the time on a GPU.
    one_hot = jax.nn.one_hot(chosen, experts, dtype=jnp.int32)
    upto = jnp.cumsum(one_hot, axis=0)
    rank = jnp.take_along_axis(upto, chosen[:, None], axis=1)[:, 0] - 1
    stops = jnp.cumsum(-(-upto[-1] // size))
    firsts = jnp.concatenate([jnp.zeros(1, stops.dtype), stops[:-1]])
    places = firsts[chosen] * size + rank
    sources = jnp.full(number * size, total, jnp.int32)
    sources = sources.at[places].set(jnp.arange(total, dtype=jnp.int32), unique_indices=True)
    of_block = jnp.searchsorted(stops, jnp.arange(number), side="right").astype(jnp.int32)
    return Blocks(sources.reshape(number, size), places, jnp.minimum(of_block, experts - 1))
