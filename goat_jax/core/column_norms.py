"""Lengths of the columns of a kernel with its adapter, without forming their sum."""

import jax.numpy as jnp

from goat_jax.core.precision import wide
from goat_jax.typing import Array


def column_norms(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """Euclidean norm of every column of ``kernel + sum_i scale_i a_i b_i``: (O,) float32.

    Expanded as ``|k|^2 + 2 k.d + |d|^2``, so that nothing of the kernel's size is made (DoRA's note
    on memory): d is spanned by the columns of a.

    Args:
        kernel: (I, O).  a: (E, I, R).  b: (E, R, O).  scale: (E,).

    >>> k, a, b = jnp.eye(2), jnp.ones((1, 2, 1)), jnp.array([[[0.0, 1.0]]])
    >>> column_norms(k, a, b, jnp.array([1.0])).round(4)
    Array([1.    , 2.2361], dtype=float32)
    """
    k = kernel.astype(wide(kernel.dtype))
    down = jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)
    up = (b * jnp.broadcast_to(scale[:, None, None], b.shape)).reshape(-1, b.shape[-1])
    crossed = jnp.einsum("IQ,IO->QO", down, k, precision="highest")
    gram = jnp.einsum("IQ,IP->QP", down, down, precision="highest")
    own = jnp.einsum("QP,PO->QO", gram, up, precision="highest")
    squares = jnp.square(k).sum(0) + ((2 * crossed + own) * up).sum(0)
    return jnp.sqrt(jnp.maximum(squares, 0.0))
