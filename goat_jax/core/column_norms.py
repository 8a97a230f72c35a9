"""Column norms of a kernel plus its adapter, without forming their sum, and their replacement."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

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


SUM = "sum_with_adapter"
"""Name of the output before its columns are scaled, for rematerialization policies."""


@jax.custom_vjp
def scaling_change(gain: Array, product: Array, delta: Array) -> Array:
    """Computes ``gain * (product + delta) - product``: what scaling adds to the frozen output.

    The gradient of the gain needs the sum of product and delta, so only their sum is kept for the
    backward pass, instead of both.

    Args:
        gain: the factor of each output (O,).
        product: the frozen layer's output (..., O).
        delta: what the adapter adds before the scaling, (..., O).

    >>> scaling_change(jnp.array([2.0]), jnp.array([[3.0]]), jnp.array([[1.0]]))
    Array([[5.]], dtype=float32)
    """
    gain = jnp.broadcast_to(gain, delta.shape).astype(delta.dtype)
    return (gain - 1) * product + gain * delta


def _forward(gain: Array, product: Array, delta: Array) -> tuple[Array, tuple[Array, Array]]:
    kept = checkpoint_name(product + delta, SUM)
    return scaling_change(gain, product, delta), (gain, kept)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    gain, kept = saved
    dtype = wide(kept.dtype)
    for_gain = (gradient.astype(dtype) * kept.astype(dtype)).sum(range(kept.ndim - 1))
    own = jnp.broadcast_to(gain, kept.shape).astype(kept.dtype)
    return for_gain.astype(gain.dtype), (own - 1) * gradient, own * gradient


scaling_change.defvjp(_forward, _backward)
