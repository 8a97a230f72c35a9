"""Dropout whose mask takes one bit per number between the forward and the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from goat_jax.core.precision import wide
from goat_jax.typing import Array, Key


def dropout(x: Array, rate: float, key: Key | None, copies: int | None = None) -> Array:
    """Applies inverted dropout to x; does nothing if the rate is 0 or the key is None (eval).

    Args:
        x: (..., I).
        rate: the probability of dropping a number, at least 0 and below 1.
        key: PRNG key of the mask.
        copies: the number E of independently masked copies, (E, ..., I); None is one mask and no
            additional axis.

    >>> dropout(jnp.ones(2), 0.5, None)
    Array([1., 1.], dtype=float32)
    """
    if rate == 0.0 or key is None:
        return x
    return masked(x, mask_bits(x, rate, key, copies), rate)


def mask_bits(x: Array, rate: float, key: Key, copies: int | None = None) -> Array:
    """Draws the mask of `dropout` and returns it with eight numbers in a byte, for `masked`.

    A byte holds eight neighbouring tokens, since features may be sharded; features in a vector or
    matrix, which has few tokens.
    """
    shape = x.shape if copies is None else (copies, *x.shape)
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    axis = keep.ndim - _from_last(x)
    more = [(0, 0)] * keep.ndim
    more[axis] = (0, -shape[axis] % 8)
    eights = jnp.pad(keep, more).reshape(*shape[:axis], -1, 8, *shape[axis + 1 :])
    places = jax.lax.broadcasted_iota(jnp.uint8, eights.shape, axis + 1)
    return (eights.astype(jnp.uint8) << places).sum(axis + 1, dtype=jnp.uint8)


def masked(x: Array, bits: Array, rate: float) -> Array:
    """Applies the mask of `mask_bits` to x; a gradient keeps the bits alone for its backward pass.

    The division is done in float32 at least: in bfloat16, 1 - 0.1 is 0.8984, a bias of 0.17% that
    every layer would multiply in.
    """

    def apply(x: Array, bits: Array) -> Array:
        axis = bits.ndim - _from_last(x)
        shape = (*bits.shape[: axis + 1], 8, *bits.shape[axis + 1 :])
        eights = jnp.broadcast_to(jnp.expand_dims(bits, axis + 1), shape)
        places = jax.lax.broadcasted_iota(jnp.uint8, shape, axis + 1)
        keep = ((eights >> places) & 1 != 0).reshape(*shape[:axis], -1, *shape[axis + 2 :])
        keep = jax.lax.slice_in_dim(keep, 0, x.shape[-_from_last(x)], axis=axis)
        scaled = (x.astype(wide(x.dtype)) / (1.0 - rate)).astype(x.dtype)
        return jnp.where(keep, jnp.broadcast_to(scaled, keep.shape), 0)

    return jax.checkpoint(apply)(x, bits)


def _from_last(x: Array) -> int:
    """Returns the packed axis, counted from the last, which is 1."""
    return 2 if x.ndim > 2 else 1
