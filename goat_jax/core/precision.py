"""The dtype in which small, delicate sums are done."""

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """float32 for float32 and narrower; float64 stays float64, so that gradients can be checked.

    >>> wide(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.promote_types(dtype, jnp.float32)
