"""Precision helpers: the dtype of sensitive sums, and exact bfloat16 splits of float32 arrays."""

import jax
import jax.numpy as jnp

from goat_jax.typing import Array, DTypeLike


def wide(dtype: DTypeLike) -> DTypeLike:
    """Returns float32 for float32 and narrower dtypes, and float64 for float64.

    float64 is kept so that gradients can be checked numerically.

    >>> wide(jnp.bfloat16)
    dtype('float32')
    """
    # Not promote_types, which refuses bfloat16 where promotion is strict.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def bfloat16_parts(array: Array) -> Array:
    """Splits a float32 array (..., N) into three bfloat16 arrays whose sum it is, (..., 3 N).

    The three are side by side on the last axis. The product of a bfloat16 array with each of them,
    summed in float32, is its product with the float32 array, without converting it to float32.

    >>> parts = bfloat16_parts(jnp.array([0.1, 3.0e-7]))
    >>> parts.reshape(3, 2).astype(jnp.float32).sum(0) == jnp.array([0.1, 3.0e-7])
    Array([ True,  True], dtype=bool)
    """
    parts, rest = [], array
    for _ in range(3):
        # Not a cast to bfloat16 and back, which compilers may optimize away.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    return jnp.concatenate(parts, -1)
