"""Adam's update direction with a bias correction that is exact in float32."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from goat_jax.typing import Array, PyTree


def scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Scales gradients as `optax.scale_by_adam` does, with the numbers of torch's Adam.

    optax computes the bias correction as ``1 - beta2**count`` in float32. At the first step with
    beta2 = 0.999 this leaves three digits, so the updates have a relative error of 3e-5, a hundred
    times float32's rounding. Here it is ``-expm1(count * log(beta2))``. The state is optax's.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: term added to the denominator.

    >>> tx = scale_by_adam(0.9, 0.999, 0.0)
    >>> zero = {"a": jnp.zeros(())}
    >>> updates, _ = tx.update({"a": jnp.full((), 3.0)}, tx.init(zero), zero)
    >>> round(float(updates["a"]), 6)
    1.0
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(
            jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros)
        )

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        first = _bias_correction(beta1, count)
        second = jnp.sqrt(_bias_correction(beta2, count))

        def direction(m: Array, v: Array) -> Array:
            by, root = first.astype(m.dtype), second.astype(v.dtype)
            return (m / by) / (jnp.sqrt(v) / root + epsilon)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _bias_correction(beta: float, count: ArrayLike) -> Array:
    """Computes ``1 - beta**count`` without cancellation."""
    log = math.log(beta) if beta else -math.inf
    return -jnp.expm1(jnp.asarray(count, jnp.float32) * log)
