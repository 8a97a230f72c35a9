"""How far factors are from having orthonormal rows or columns: the losses of AdaLoRA and KaSA."""

import jax
import jax.numpy as jnp

from goat_jax.typing import Array


def gram_norms(a: Array, b: Array, published: bool = False) -> tuple[Array, Array]:
    """``|a_i^T a_i - 1|`` and ``|b_i b_i^T - 1|`` of every expert, unsquared Frobenius: (E,), (E,).

    Args:
        a: (E, I, R).  b: (E, R, O).
        published: the norms of KaSA's own code, of the large Gram matrices ``a_i a_i^T`` (I, I) and
            ``b_i^T b_i`` (O, O). They are ``sqrt(small^2 + I - R)``, so nothing large is made.

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
    """Squared Frobenius distance of (E, R, R) from the unit matrix: (E,)."""
    unit = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jnp.square(gram - unit).sum((-2, -1))


@jax.custom_jvp
def _root(square: Array) -> Array:
    return jnp.sqrt(square)


@_root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The norm has no gradient at 0; 0 is its smallest subgradient, and not a nan.
    root = jnp.sqrt(primals[0])
    slope = jnp.where(root == 0, 0.0, 0.5 / jnp.where(root == 0, 1.0, root))
    return root, slope * tangents[0]
