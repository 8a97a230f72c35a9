"""Scale rules: compute the number s_i that multiplies expert i's ``x a_i b_i``, (E,) in float32.

In all of them ``rank`` is the rank of one expert, ``in_features`` the layer's I, and
``segment_values`` the singular values (E, R) of the segments that the experts start from.
"""

import jax.numpy as jnp

from goat_jax.typing import Array


def alpha_over_rank(num_experts: int, rank: int, alpha: float) -> Array:
    """Computes LoRA's scale alpha / R, also used by the published GOAT code.

    >>> alpha_over_rank(2, 4, 64.0)
    Array([16., 16.], dtype=float32)
    """
    return jnp.full((num_experts,), alpha / rank, jnp.float32)


def alpha_over_root_rank(num_experts: int, rank: int, alpha: float) -> Array:
    """Computes rsLoRA's scale alpha / sqrt(R)."""
    return jnp.full((num_experts,), alpha / rank**0.5, jnp.float32)


def theory(num_experts: int, rank: int, in_features: int, eta: float) -> Array:
    """Computes the scale of Theorem 3.5, sqrt(3 I eta / R).

    eta is the learning rate of full fine-tuning divided by that of LoRA.

    >>> theory(1, 1, 768, 1.0)
    Array([48.], dtype=float32)
    """
    return jnp.full((num_experts,), (3 * in_features * eta / rank) ** 0.5, jnp.float32)


def by_spectrum(scale: Array, segment_values: Array) -> Array:
    """Computes GOAT+'s scales s_i = s_1 sqrt(sigma_1 / sigma_i), which equalize s_i^2 sigma_i.

    sigma_i is the sum of the singular values of expert i's segment. (The method is called GOAT-s in
    v4 of the paper, appendix E.) No scale can do this for an empty segment, as in a kernel of zeros
    or of low rank: both factors of the expert are zero and stay zero under any scale, so it keeps
    s_1. If the first segment is empty, every expert keeps s_1. A segment counts as empty if its sum
    is zero to float precision, relative to the largest segment.

    Args:
        scale: the scales before the correction, s_1 for every expert (E,).
        segment_values: the singular values of the experts' segments (E, R).

    >>> by_spectrum(jnp.array([2.0, 2.0, 2.0]), jnp.array([[4.0], [1.0], [0.0]]))
    Array([2., 4., 2.], dtype=float32)
    """
    sigma = segment_values.sum(-1)
    distinct = jnp.minimum(sigma[0], sigma) > jnp.finfo(sigma.dtype).eps * sigma.max()
    return scale * jnp.sqrt(jnp.where(distinct, sigma[0], 1.0) / jnp.where(distinct, sigma, 1.0))
