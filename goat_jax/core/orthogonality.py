"""Deviation of factors from orthonormal rows or columns, for the losses of AdaLoRA and KaSA."""

import jax
import jax.numpy as jnp

from goat_jax.typing import Array


def gram_norms(a: Array, b: Array, published: bool = False) -> tuple[Array, Array]:
    """Computes the Frobenius norms ``|a_i^T a_i - 1|`` and ``|b_i b_i^T - 1|`` of every expert.

    Args:
        a: the experts' first factors (E, I, R).
        b: the experts' second factors (E, R, O).
        published: whether to use the large Gram matrices ``a_i a_i^T`` (I, I) and ``b_i^T b_i``
            (O, O), as KaSA's code does. Their norms are ``sqrt(small^2 + I - R)`` (O for b), so the
            large matrices are not formed.

    Returns:
        The norms for a, (E,), and for b, (E,).

    >>> a, b = jnp.eye(3)[None, :, :2], jnp.zeros((1, 2, 4))
    >>> [round(float(norm[0]), 4) for norm in gram_norms(a, b)]
    [0.0, 1.4142]
    """
    squares = [
        _squared_distance(jnp.einsum("EIR,EIQ->ERQ", a, a, precision="highest")),
        _squared_distance(jnp.einsum("ERO,EQO->ERQ", b, b, precision="highest")),
    ]
    if published:
        rank = a.shape[-1]
        squares = [squares[0] + (a.shape[1] - rank), squares[1] + (b.shape[-1] - rank)]
    return _root(squares[0]), _root(squares[1])


def _squared_distance(gram: Array) -> Array:
    """Computes the squared Frobenius distance of (E, R, R) from the identity, (E,)."""
    unit = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jnp.square(gram - unit).sum((-2, -1))


@jax.custom_jvp
def _root(square: Array) -> Array:
    return jnp.sqrt(square)


@_root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The norm is not differentiable at 0; take the subgradient 0 instead of a NaN.
    root = jnp.sqrt(primals[0])
    slope = jnp.where(root == 0, 0.0, 0.5 / jnp.where(root == 0, 1.0, root))
    return root, slope * tangents[0]
