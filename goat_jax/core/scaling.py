"""Scale rules: the number s_i that multiplies expert i's ``x a_i b_i``, (E,) in float32.

All of them take what a rule may depend on; ``rank`` is the rank of one expert, ``in_features`` the
layer's I and ``segment_values`` the singular values (E, R) the experts start from (or None).
"""

import jax.numpy as jnp

from goat_jax.typing import Array


def alpha_over_rank(num_experts: int, rank: int, alpha: float) -> Array:
    """LoRA's alpha / R (the published GOAT code too).

    >>> alpha_over_rank(2, 4, 64.0)
    Array([16., 16.], dtype=float32)
    """
    return jnp.full((num_experts,), alpha / rank, jnp.float32)


def alpha_over_root_rank(num_experts: int, rank: int, alpha: float) -> Array:
    """rsLoRA's alpha / sqrt(R)."""
    return jnp.full((num_experts,), alpha / rank**0.5, jnp.float32)


def theory(num_experts: int, rank: int, in_features: int, eta: float) -> Array:
    """Theorem 3.5: sqrt(3 I eta / R), with eta = full fine-tuning rate / LoRA rate.

    >>> theory(1, 1, 768, 1.0)
    Array([48.], dtype=float32)
    """
    return jnp.full((num_experts,), (3 * in_features * eta / rank) ** 0.5, jnp.float32)


def by_spectrum(scale: Array, segment_values: Array) -> Array:
    """GOAT+: s_i = s_1 sqrt(sigma_1 / sigma_i), sigma_i the sum over expert i's segment (E, R).

    (Called GOAT-s in v4 of the paper, appendix E.) s_i^2 sigma_i is then the same for all experts.
    No scale does that for an empty segment, of a kernel of low rank or of zeros: both factors of
    its expert are zero and stay so whatever multiplies them, and it keeps s_1. So does every expert
    if the first one's segment is empty. Empty is what the precision of the numbers does not tell
    from zero beside the largest segment.

    >>> by_spectrum(jnp.array([2.0, 2.0, 2.0]), jnp.array([[4.0], [1.0], [0.0]]))
    Array([2., 4., 2.], dtype=float32)
    """
    sigma = segment_values.sum(-1)
    told = jnp.minimum(sigma[0], sigma) > jnp.finfo(sigma.dtype).eps * sigma.max()
    return scale * jnp.sqrt(jnp.where(told, sigma[0], 1.0) / jnp.where(told, sigma, 1.0))
