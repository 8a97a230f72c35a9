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
    crossed = jnp.einsum("IO,IQ->OQ", k, down, precision="highest")
    gram = jnp.einsum("IQ,IP->QP", down, down, precision="highest")
    # `up` comes first: as the second factor of a product fused with a sum, XLA of jaxlib 0.10.2
    # reads beyond an array that it knows to be constant, such as the zeros of a start, on CPUs.
    squared = jnp.einsum("PO,PQ->OQ", up, gram, precision="highest")
    squares = jnp.square(k).sum(0) + ((2 * crossed + squared) * up.T).sum(1)
    return jnp.sqrt(jnp.maximum(squares, 0.0))


LEAST_GAIN = 1e-20
"""Smallest factor of a column. It stands for zero, which would leave nothing to divide by."""


@jax.custom_vjp
def scaled_sum(gain: Array, product: Array, delta: Array) -> Array:
    """Computes ``gain * (product + delta)`` and keeps its own result for the gain's gradient.

    That gradient needs the sum. It is the result over the gain, and whatever follows the layer
    keeps the result anyway, so nothing of the output's size is kept for this gradient alone.

    Args:
        gain: the factor of each output (O,).
        product: the frozen layer's output (..., O).
        delta: what the adapter adds before the scaling, (..., O).

    Returns:
        The scaled sum (..., O) in delta's dtype.

    >>> scaled_sum(jnp.array([2.0]), jnp.array([[3.0]]), jnp.array([[1.0]]))
    Array([[8.]], dtype=float32)
    """
    return _scaled(_not_zero(gain), product + delta)


def _sum_forward(gain: Array, product: Array, delta: Array) -> tuple[Array, tuple[Array, Array]]:
    output = scaled_sum(gain, product, delta)
    return output, (gain, output)


def _sum_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    gain, output = saved
    used = _not_zero(gain)
    for_sum = _scaled(used, gradient)
    return (_over_tokens(gradient, output) / used).astype(gain.dtype), for_sum, for_sum


scaled_sum.defvjp(_sum_forward, _sum_backward)


SUM = "sum_with_adapter"
"""Name of the output before its columns are scaled, for rematerialization policies."""


@jax.custom_vjp
def scaling_change(gain: Array, product: Array, delta: Array) -> Array:
    """Computes ``gain * (product + delta) - product``: what scaling adds to a frozen output.

    The gradient of the gain needs the sum of product and delta, so only their sum is kept for the
    backward pass, instead of both. With dropout the frozen output has another input than this
    product, so that the sum is no part of the layer's output (`scaled_sum`).

    Args:
        gain: the factor of each output (O,).
        product: the frozen kernel's product (..., O).
        delta: what the adapter adds before the scaling, (..., O).

    >>> scaling_change(jnp.array([2.0]), jnp.array([[3.0]]), jnp.array([[1.0]]))
    Array([[5.]], dtype=float32)
    """
    return _scaled(gain - 1, product) + _scaled(gain, delta)


def _change_forward(gain: Array, product: Array, delta: Array) -> tuple[Array, tuple[Array, Array]]:
    kept = checkpoint_name(product + delta, SUM)
    return scaling_change(gain, product, delta), (gain, kept)


def _change_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    gain, kept = saved
    for_gain = _over_tokens(gradient, kept).astype(gain.dtype)
    return for_gain, _scaled(gain - 1, gradient), _scaled(gain, gradient)


scaling_change.defvjp(_change_forward, _change_backward)


def _scaled(gain: Array, y: Array) -> Array:
    """Multiplies y (..., O) by a factor of each output, in the gain's dtype; returns y's."""
    return (jnp.broadcast_to(gain, y.shape) * y.astype(gain.dtype)).astype(y.dtype)


def _not_zero(gain: Array) -> Array:
    return jnp.where(jnp.abs(gain) < LEAST_GAIN, jnp.asarray(LEAST_GAIN, gain.dtype), gain)


def _over_tokens(x: Array, y: Array) -> Array:
    """Sums the products of x and y (..., O) over all tokens, in float32 at least."""
    dtype = wide(x.dtype)
    return (x.astype(dtype) * y.astype(dtype)).sum(range(x.ndim - 1))
