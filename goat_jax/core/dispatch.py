"""Expert dispatch: every expert's projection in rank space, gated there, one contraction back.

``delta = sum_i g_i x a_i b_i`` is computed as ``h_i = g_i (x a_i)`` by a vmap over the experts and
then a single contraction of ``h`` with ``b`` over (expert, rank). Nothing of shape (E, S, O) ever
exists; XLA sees two matrix products of plain LoRA's size at the same total rank.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from goat_jax.core.precision import wide
from goat_jax.typing import Array

HIDDEN = "adapter_hidden"
"""Name under which a rematerialisation policy finds the projections in rank space: S x E x R
numbers, next to nothing beside the layer's own S x O."""


def project(x: Array, a: Array, gate: Array) -> Array:
    """One expert in rank space: ``(x @ a) * gate``.

    Args:
        x: (..., I).  a: (I, R).  gate: (...,) float32.

    Returns:
        (..., R) float32: it is tiny, so the gate is applied before any rounding to x's dtype.
    """
    hidden = jnp.dot(x, a.astype(x.dtype), preferred_element_type=wide(x.dtype))
    return hidden * gate[..., None]


@jax.custom_vjp
def expand(hidden: Array, b: Array) -> Array:
    """From rank space to the output: ``hidden @ b`` in hidden's dtype.

    Its gradient is written out because the one XLA derives for b first transposes the whole output
    gradient (S, O), a quarter of a training step on a CPU; and so b's gradient stays in float32.

    Args:
        hidden: (..., R), R over all experts.  b: (R, O).

    >>> expand(jnp.ones((3, 2)), jnp.ones((2, 4))).shape
    (3, 4)
    """
    return jnp.dot(hidden, b.astype(hidden.dtype))


def _expand_forward(hidden: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return expand(hidden, b), (hidden, b)


def _expand_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    hidden, b = saved
    tokens = hidden.reshape(-1, hidden.shape[-1])
    for_b = jnp.dot(
        tokens.T,
        gradient.reshape(-1, gradient.shape[-1]),
        preferred_element_type=wide(hidden.dtype),
    )
    return jnp.dot(gradient, b.astype(gradient.dtype).T), for_b.astype(b.dtype)


expand.defvjp(_expand_forward, _expand_backward)


def flat(a: Array) -> Array:
    """The experts' a (E, I, R) side by side: (I, E x R)."""
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)


def dispatch(x: Array, a: Array, b: Array, gate: Array, hidden: Array | None = None) -> Array:
    """Sum over experts of ``gate_i * x a_i b_i``: (..., O) in x's dtype.

    Args:
        x: (..., I), or (E, ..., I) when every expert sees its own (dropped-out) copy.
        a: (E, I, R).  b: (E, R, O).
        gate: (..., E) float32: routing weight times the expert's scale.
        hidden: (..., E x R) float32, if x times all a (`flat`) is known already.

    >>> x, a, b = jnp.ones((3, 4)), jnp.ones((2, 4, 1)), jnp.ones((2, 1, 5))
    >>> dispatch(x, a, b, jnp.array([[0.5, 0.0]] * 3))[0]
    Array([2., 2., 2., 2., 2.], dtype=float32)
    """
    if hidden is None:
        copies = 0 if x.ndim == gate.ndim + 1 else None
        hidden = jax.vmap(project, in_axes=(copies, 0, -1), out_axes=-2)(x, a, gate)
    else:
        hidden = hidden.reshape(*gate.shape, -1) * gate[..., None]
    hidden = checkpoint_name(hidden.astype(x.dtype).reshape(*hidden.shape[:-2], -1), HIDDEN)
    return expand(hidden, b.reshape(-1, b.shape[-1]))
