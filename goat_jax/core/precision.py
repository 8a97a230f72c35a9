"""The dtype in which small, delicate sums are done."""

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """float32 for float32 and narrower; float64 stays float64, so that gradients can be checked.

    >>> wide(jnp.bfloat16)
    dtype('float32')
    """
    # Not promote_types, which refuses bfloat16 where promotion is strict.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
