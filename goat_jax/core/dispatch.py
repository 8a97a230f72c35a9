"""Expert dispatch: projects tokens to rank space, gates them, and projects back in one product.

``delta = sum_i g_i x a_i b_i`` is computed as ``h_i = g_i (x a_i)`` for all experts at once, then a
single contraction of ``h`` with ``b`` over (expert, rank). No array of shape (E, S, O) is made; XLA
sees two matrix products of plain LoRA's size at the same total rank.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from goat_jax.core.precision import wide
from goat_jax.core.products import narrow_product, sum_over_tokens
from goat_jax.typing import Array

HIDDEN = "adapter_hidden"
"""Name of the projections in rank space, before they are gated, for rematerialization policies.

They are S x E x R numbers, very few compared with the layer's output, S x O. The gates' gradient
needs them as they are here; what is gated is quickly made from them again."""


def project(x: Array, a: Array, gate: Array) -> Array:
    """Projects tokens to one expert's rank space and gates them: ``(x @ a) * gate``.

    Args:
        x: tokens (..., I).
        a: the expert's first factor (I, R).
        gate: the expert's gate for every token, (...,) float32.

    Returns:
        (..., R) float32. The array is small, so the gate is applied before rounding to x's dtype.
    """
    return checkpoint_name(narrow_product(x, a), HIDDEN) * gate[..., None]


@jax.custom_vjp
def expand(hidden: Array, b: Array) -> Array:
    """Projects from rank space to the output: ``hidden @ b`` in hidden's dtype.

    The gradient is written by hand for two reasons. The derived one for b transposes the complete
    output gradient (S, O) first, which takes a quarter of a training step on a CPU. And b's
    gradient is accumulated in float32 this way.

    Args:
        hidden: gated projections (..., R), with R over all experts.
        b: the experts' second factors, one below the other (R, O).

    >>> expand(jnp.ones((3, 2)), jnp.ones((2, 4))).shape
    (3, 4)
    """
    return jnp.dot(hidden, b.astype(hidden.dtype))


def _expand_forward(hidden: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return expand(hidden, b), (hidden, b)


def _expand_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    hidden, b = saved
    for_b = sum_over_tokens(hidden, gradient, preferred_element_type=wide(hidden.dtype))
    return jnp.dot(gradient, b.astype(gradient.dtype).T), for_b.astype(b.dtype)


expand.defvjp(_expand_forward, _expand_backward)


def flat(a: Array) -> Array:
    """Puts the experts' a (E, I, R) side by side: (I, E x R)."""
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)


def dispatch(x: Array, a: Array, b: Array, gate: Array, hidden: Array | None = None) -> Array:
    """Computes the sum over experts of ``gate_i * x a_i b_i``, (..., O) in x's dtype.

    Args:
        x: tokens (..., I), or (E, ..., I) with a separately dropped-out copy for each expert.
        a: the experts' first factors (E, I, R).
        b: the experts' second factors (E, R, O).
        gate: routing weight times the expert's scale, (..., E) float32.
        hidden: x times all a (`flat`), (..., E x R) float32; None computes it here.

    >>> x, a, b = jnp.ones((3, 4)), jnp.ones((2, 4, 1)), jnp.ones((2, 1, 5))
    >>> dispatch(x, a, b, jnp.array([[0.5, 0.0]] * 3))[0]
    Array([2., 2., 2., 2., 2.], dtype=float32)
    """
    return expand(gated(x, a, gate, hidden), b.reshape(-1, b.shape[-1]))


def gated(x: Array, a: Array, gate: Array, hidden: Array | None = None) -> Array:
    """Computes the experts' gated projections, (..., E x R) in x's dtype; arguments as above."""
    if hidden is None and x.ndim == gate.ndim:
        hidden = checkpoint_name(narrow_product(x, flat(a)), HIDDEN)
    if hidden is None:
        hidden = jax.vmap(project, in_axes=(0, 0, -1), out_axes=-2)(x, a, gate)
    else:
        hidden = hidden.reshape(*gate.shape, -1) * gate[..., None]
    return hidden.astype(x.dtype).reshape(*hidden.shape[:-2], -1)
