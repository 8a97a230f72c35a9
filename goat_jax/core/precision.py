"""The dtype in which small, delicate sums are done."""

from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.typing import Array


def wide(dtype: Any) -> Any:
    """float32 for float32 and narrower; float64 stays float64, so that gradients can be checked.

    >>> wide(jnp.bfloat16)
    dtype('float32')
    """
    # Not promote_types, which refuses bfloat16 where promotion is strict.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def bfloat16_parts(array: Array) -> Array:
    """A float32 array (..., N) as three bfloat16 ones side by side, (..., 3 N), that add up to it.

    A bfloat16 array times the three, added up in float32, is its product with the float32 array
    itself, and nothing else has to become float32 for it.

    >>> parts = bfloat16_parts(jnp.array([0.1, 3.0e-7]))
    >>> parts.reshape(3, 2).astype(jnp.float32).sum(0) == jnp.array([0.1, 3.0e-7])
    Array([ True,  True], dtype=bool)
    """
    parts, rest = [], array
    for _ in range(3):
        # Not a plain cast there and back, which compilers are allowed to leave out.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    return jnp.concatenate(parts, -1)
