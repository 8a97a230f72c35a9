"""Column norms of a kernel plus its adapter, without forming their sum."""

import jax.numpy as jnp

from goat_jax.core.precision import wide
from goat_jax.typing import Array


def column_norms(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """Computes the Euclidean norm of every column of ``kernel + sum_i scale_i a_i b_i``.

    The square is expanded as ``|k|^2 + 2 k.d + |d|^2``. Since the columns of a span d, the last two
    terms need no array of the kernel's size (DoRA's note on memory).

    Args:
        kernel: the frozen kernel (I, O).
        a: the experts' first factors (E, I, R).
        b: the experts' second factors (E, R, O).
        scale: the experts' scales (E,).

    Returns:
        The norms (O,), float32 (float64 for float64 arrays).

    >>> k, a, b = jnp.eye(2), jnp.ones((1, 2, 1)), jnp.array([[[0.0, 1.0]]])
    >>> column_norms(k, a, b, jnp.array([1.0])).round(4)
    Array([1.    , 2.2361], dtype=float32)
    """
    k = kernel.astype(wide(kernel.dtype))
    down = jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)
    up = (b * jnp.broadcast_to(scale[:, None, None], b.shape)).reshape(-1, b.shape[-1])
    crossed = jnp.einsum("IQ,IO->QO", down, k, precision="highest")
    gram = jnp.einsum("IQ,IP->QP", down, down, precision="highest")
    squared = jnp.einsum("QP,PO->QO", gram, up, precision="highest")
    squares = jnp.square(k).sum(0) + ((2 * crossed + squared) * up).sum(0)
    return jnp.sqrt(jnp.maximum(squares, 0.0))
