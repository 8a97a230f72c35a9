"""Initial values of the expert factors ``a`` (E, I, R) and ``b`` (E, R, O), and of routers."""

import jax
import jax.numpy as jnp

from goat_jax.core.svd import Svd
from goat_jax.typing import Array, Factors, Key


def kaiming_uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> Array:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), float32, variance 1 / (3 fan_in).

    It is torch's ``kaiming_uniform_(a=sqrt(5))``, which the scale of Theorem 3.5 assumes.

    >>> w = kaiming_uniform(jax.random.key(0), (100, 100), fan_in=100)
    >>> bool(jnp.abs(w).max() <= 0.1)
    True
    """
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def zero_delta(
    key: Key, in_features: int, out_features: int, num_experts: int, rank: int
) -> Factors:
    """Makes LoRA's initial factors: a kaiming uniform over I, b zero, so that nothing is added."""
    return {
        "a": kaiming_uniform(key, (num_experts, in_features, rank), in_features),
        "b": jnp.zeros((num_experts, rank, out_features), jnp.float32),
    }


def factors_of_segments(segments: Svd, scale: Array, rho: float) -> Factors:
    """Splits the experts' SVD segments into factors by square roots, damped by rho (paper eq. 19).

    ``a_i = u_i sqrt(s_i) / sqrt(scale * rho)`` and ``b_i = sqrt(s_i) vt_i / sqrt(scale * rho)``, so
    that ``scale * a_i @ b_i`` is 1/rho of the segment for any scale.

    Args:
        segments: u (E, I, R), s (E, R), vt (E, R, O), from `svd.take_segments`.
        scale: one number for all experts, the first expert's scale even for GOAT+.
        rho: the damping, 10 in the paper, 1 for PiSSA-like methods.
    """
    root = jnp.sqrt(segments.s / (scale * rho))
    return {"a": segments.u * root[:, None, :], "b": root[:, :, None] * segments.vt}
