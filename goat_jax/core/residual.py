"""Residual kernel: the pretrained kernel minus the adapter's initial output."""

import jax.numpy as jnp

from goat_jax.typing import Array


def delta_weight(a: Array, b: Array, scale: Array, weights: Array | float = 1.0) -> Array:
    """Computes ``sum_i weights_i scale_i a_i @ b_i`` (I, O), float32, at the highest precision.

    Args:
        a: the experts' first factors (E, I, R).
        b: the experts' second factors (E, R, O).
        scale: the experts' scales (E,).
        weights: the experts' weights, one number for all or (E,).
    """
    gain = scale * weights
    return jnp.einsum("EIR,ERO->IO", a * gain[:, None, None], b, precision="highest")


def side_by_side(a: Array, b: Array, gain: Array) -> tuple[Array, Array]:
    """Returns factors (I, E R) and (E R, O) whose product is ``sum_i gain_i a_i @ b_i``.

    Args:
        a: the experts' first factors (E, I, R).
        b: the experts' second factors (E, R, O).
        gain: the experts' multipliers (E,).

    >>> a, b = side_by_side(jnp.ones((4, 3, 2)), jnp.ones((4, 2, 5)), jnp.ones(4))
    >>> a.shape, b.shape
    ((3, 8), (8, 5))
    """
    gained = b * jnp.broadcast_to(gain[:, None, None], b.shape)
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1), gained.reshape(-1, b.shape[-1])


def residual_kernel(
    kernel: Array, a: Array, b: Array, scale: Array, weight: Array | float
) -> Array:
    """Computes ``kernel - sum_i weight_i scale_i a_i @ b_i`` (I, O) in the kernel's dtype.

    The difference is taken in float32 and rounded once. With weight = 1/E it is W0 - W_res of
    Theorem 3.4: the subtracted part is the expected output of the experts under a balanced router,
    so training starts aligned with the pretrained kernel. With E = 1 and weight 1 it is the exact
    residual of PiSSA and MiLoRA.

    Args:
        kernel: the pretrained kernel (I, O).
        a: the experts' first factors (E, I, R).
        b: the experts' second factors (E, R, O).
        scale: the experts' scales (E,).
        weight: the experts' expected weights, one number for all or (E,).

    >>> k = jnp.ones((2, 3)); a = jnp.ones((2, 2, 1)); b = jnp.ones((2, 1, 3))
    >>> residual_kernel(k, a, b, jnp.array([1.0, 1.0]), 0.5)
    Array([[0., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    residual = kernel.astype(jnp.float32) - delta_weight(a, b, scale, weight)
    return residual.astype(kernel.dtype)
