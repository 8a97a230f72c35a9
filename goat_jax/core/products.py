"""One input times two narrow matrices at once: the factors of all experts, and the router's."""

import jax
import jax.numpy as jnp

from goat_jax.core.precision import bfloat16_parts, wide
from goat_jax.core.routers import router_logits
from goat_jax.typing import Array

Saved = tuple[Array, Array, Array]


@jax.custom_vjp
def narrow_products(x: Array, inner: Array, router: Array) -> tuple[Array, Array]:
    """``x @ inner`` rounded as any product of x's dtype, and ``x @ router`` in float32.

    The same numbers as two products. Their gradients are taken side by side: one product gives that
    of x, where two would give two arrays of x's size to add up, and one that of both matrices. In
    bfloat16 nothing of x's size is ever float32, see `bfloat16_parts`.

    Args:
        x: (..., I).  inner: (I, R), R over all experts.  router: (I, E).

    Returns:
        (..., R) and (..., E), float32 (float64 for float64).

    >>> hidden, logits = narrow_products(jnp.ones((3, 4)), jnp.ones((4, 2)), jnp.ones((4, 5)))
    >>> hidden.shape, logits.shape
    ((3, 2), (3, 5))
    """
    dtype = wide(x.dtype)
    hidden = jnp.dot(x, inner.astype(x.dtype), preferred_element_type=dtype)
    if x.dtype != jnp.bfloat16:
        return hidden, router_logits(x, router)
    parts = jnp.dot(x, bfloat16_parts(router), preferred_element_type=dtype)
    return hidden, _sum_of_parts(parts)


def _forward(x: Array, inner: Array, router: Array) -> tuple[tuple[Array, Array], Saved]:
    return narrow_products(x, inner, router), (x, inner, router)


def _backward(saved: Saved, gradients: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    x, inner, router = saved
    for_hidden, for_logits = gradients
    tokens, dtype = x.reshape(-1, x.shape[-1]), wide(x.dtype)
    columns = jnp.concatenate([inner, router], -1).astype(x.dtype)
    both = jnp.concatenate([for_hidden, for_logits], -1).astype(x.dtype)
    # The highest precision is the router's wish; it costs little, the matrices being narrow.
    for_x = jnp.dot(both, columns.T, precision="highest")
    if x.dtype == jnp.bfloat16:
        both = jnp.concatenate([for_hidden.astype(x.dtype), bfloat16_parts(for_logits)], -1)
    rows = both.reshape(-1, both.shape[-1])
    product = jnp.dot(tokens.T, rows, preferred_element_type=dtype, precision="highest")
    for_inner, for_router = jnp.split(product, [inner.shape[-1]], -1)
    if x.dtype == jnp.bfloat16:
        for_router = _sum_of_parts(for_router)
    return for_x, for_inner.astype(inner.dtype), for_router.astype(router.dtype)


def _sum_of_parts(side_by_side: Array) -> Array:
    """What a product with `bfloat16_parts` stands for; the small parts are added first."""
    first, second, third = jnp.split(side_by_side, 3, -1)
    return first + (second + third)


narrow_products.defvjp(_forward, _backward)
