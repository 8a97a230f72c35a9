"""Products of tokens with the router, alone or with the experts' factors at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.core.precision import bfloat16_parts, wide
from goat_jax.typing import Array

Saved = tuple[Array, Array, Array]

CONVERTED = 8
"""One token in so many is converted to float32 at a time for the router's gradient."""


@jax.custom_vjp
def router_logits(x: Array, router: Array) -> Array:
    """Computes ``x @ router`` (..., E) in float32 for any dtype of x (..., I); router is (I, E).

    The backward pass converts x again instead of keeping a float32 copy of it, an eighth of the
    tokens at a time, and x's gradient is computed in x's dtype.
    """
    # By default accelerators multiply float32 in fewer bits, which can change the selected experts.
    dtype = wide(x.dtype)
    return jnp.dot(x.astype(dtype), router.astype(dtype), precision="highest")


def _logits_forward(x: Array, router: Array) -> tuple[Array, tuple[Array, Array]]:
    return router_logits(x, router), (x, router)


def _logits_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, router = saved
    for_x = jnp.dot(gradient.astype(x.dtype), router.astype(x.dtype).T, precision="highest")
    return for_x, _for_router(x, gradient).astype(router.dtype)


def _for_router(x: Array, gradient: Array) -> Array:
    """Sums x's outer products with the logits' gradient in float32."""
    dtype = wide(x.dtype)
    apart = min(CONVERTED, x.shape[1]) if x.dtype != dtype and x.ndim > 2 else 1
    if apart == 1:
        return sum_over_tokens(x.astype(dtype), gradient, precision="highest")
    # Every eighth token, since a mesh that shards the tokens has each kind on every device.
    sums = (
        sum_over_tokens(x[:, i::apart].astype(dtype), gradient[:, i::apart], precision="highest")
        for i in range(apart)
    )
    return functools.reduce(jnp.add, sums)


router_logits.defvjp(_logits_forward, _logits_backward)


@jax.custom_vjp
def narrow_product(x: Array, inner: Array) -> Array:
    """Computes ``x @ inner`` (..., R) in float32 with operands in x's dtype.

    The derived gradients would convert x (..., I) to the float32 of the output's gradient. Here
    this gradient is rounded to x's dtype, as in `narrow_products`.
    """
    return jnp.dot(x, inner.astype(x.dtype), preferred_element_type=wide(x.dtype))


def _product_forward(x: Array, inner: Array) -> tuple[Array, tuple[Array, Array]]:
    return narrow_product(x, inner), (x, inner)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, inner = saved
    rounded = gradient.astype(x.dtype)
    for_inner = sum_over_tokens(x, rounded, preferred_element_type=wide(x.dtype))
    return jnp.dot(rounded, inner.astype(x.dtype).T), for_inner.astype(inner.dtype)


narrow_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def narrow_products(x: Array, inner: Array, router: Array) -> tuple[Array, Array]:
    """Computes ``x @ inner`` with operands in x's dtype, and ``x @ router`` in float32.

    The values are those of two separate products, but the gradients are combined: one product gives
    x's gradient, instead of two arrays of x's size to add, and one product gives the gradients of
    both matrices. In bfloat16 no array of x's size is converted to float32, see `bfloat16_parts`.

    Args:
        x: tokens (..., I).
        inner: the first factors of all experts (I, R), with R over all experts.
        router: the router's matrix (I, E).

    Returns:
        ``x @ inner`` (..., R) and ``x @ router`` (..., E), both float32 (float64 for float64).

    >>> hidden, logits = narrow_products(jnp.ones((3, 4)), jnp.ones((4, 2)), jnp.ones((4, 5)))
    >>> hidden.shape, logits.shape
    ((3, 2), (3, 5))
    """
    hidden = narrow_product(x, inner)
    if x.dtype != jnp.bfloat16:
        return hidden, router_logits(x, router)
    parts = jnp.dot(x, bfloat16_parts(router), preferred_element_type=wide(x.dtype))
    return hidden, _sum_of_parts(parts)


def _forward(x: Array, inner: Array, router: Array) -> tuple[tuple[Array, Array], Saved]:
    return narrow_products(x, inner, router), (x, inner, router)


def _backward(saved: Saved, gradients: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    x, inner, router = saved
    for_hidden, for_logits = gradients
    dtype = wide(x.dtype)
    columns = jnp.concatenate([inner, router], -1).astype(x.dtype)
    both = jnp.concatenate([for_hidden, for_logits], -1).astype(x.dtype)
    # The router needs the highest precision; it costs little because the matrices are narrow.
    for_x = jnp.dot(both, columns.T, precision="highest")
    if x.dtype == jnp.bfloat16:
        both = jnp.concatenate([for_hidden.astype(x.dtype), bfloat16_parts(for_logits)], -1)
    product = sum_over_tokens(x, both, preferred_element_type=dtype, precision="highest")
    for_inner, for_router = jnp.split(product, [inner.shape[-1]], -1)
    if x.dtype == jnp.bfloat16:
        for_router = _sum_of_parts(for_router)
    return for_x, for_inner.astype(inner.dtype), for_router.astype(router.dtype)


def sum_over_tokens(x: Array, y: Array, **options: Any) -> Array:
    """Sums the outer products (A, C) of x (..., A) and y (..., C) over all tokens.

    The token axes are not flattened before: on a mesh that shards two of them, the flat axis would
    have no sharding, and every device would gather all tokens.

    Args:
        x: one vector per token.
        y: the other vector per token.
        options: options of `jax.numpy.tensordot`.
    """
    axes = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, y, (axes, axes), **options)


def _sum_of_parts(side_by_side: Array) -> Array:
    """Sums the three products with `bfloat16_parts`; the small ones are added first."""
    first, second, third = jnp.split(side_by_side, 3, -1)
    return first + (second + third)


narrow_products.defvjp(_forward, _backward)
