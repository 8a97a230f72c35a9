"""`Rotation`: what rotary positions do to queries and keys."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from goat_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotation of tokens at their positions; R features of a head are rotated.

    Attributes:
        cos: cosines (B, T, 1, R / 2), float32.
        sin: sines (B, T, 1, R / 2), float32.
        growth: (B, T, 1, 1) float32, a factor of the queries; None for 1.
        interleaved: whether neighboring features form a pair; else feature i of the first half of
            those rotated and feature i of the second. Static under jit.
    """

    cos: Array
    sin: Array
    growth: Array | None = None
    interleaved: bool = dataclasses.field(default=False, metadata={"static": True})

    def still(self) -> Rotation:
        """Returns a rotation of the same shape that leaves every head as it is."""
        growth = None if self.growth is None else jnp.ones_like(self.growth)
        return Rotation(jnp.ones_like(self.cos), jnp.zeros_like(self.sin), growth, self.interleaved)

    def keys(self, x: Array) -> Array:
        """Rotates the keys x (B, T, G, H)."""
        return rotate(x, self)

    def queries(self, x: Array) -> Array:
        """Rotates the queries x (B, T, N, H)."""
        turned = rotate(x, self)
        if self.growth is None:
            return turned
        return turned * jnp.broadcast_to(self.growth, x.shape).astype(x.dtype)


def rotate(x: Array, rotation: Rotation) -> Array:
    """Rotates the first features of heads x (B, T, N, H), as many as the rotation has.

    >>> x = jnp.ones((1, 1, 1, 2))
    >>> quarter = Rotation(jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)))
    >>> rotate(x, quarter).ravel()
    Array([-1.,  1.], dtype=float32)
    """
    pairs = rotation.cos.shape[-1]
    wide = x.astype(jnp.float32)
    turning, rest = wide[..., : 2 * pairs], wide[..., 2 * pairs :]
    if rotation.interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = jnp.split(turning, 2, axis=-1)
    cos, sin = (jnp.broadcast_to(a, first.shape) for a in (rotation.cos, rotation.sin))
    turned = (first * cos - second * sin, second * cos + first * sin)
    if rotation.interleaved:
        joined = jnp.stack(turned, axis=-1).reshape(turning.shape)
    else:
        joined = jnp.concatenate(turned, axis=-1)
    return jnp.concatenate([joined, rest], axis=-1).astype(x.dtype)
