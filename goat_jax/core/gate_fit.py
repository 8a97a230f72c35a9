"""Constant weights of experts that replace a router's with the least squared error."""

import jax.numpy as jnp
import numpy as np

from goat_jax.typing import Array


def gate_equations(hidden: Array, b: Array, weights: Array, mask: Array | None = None) -> Array:
    """Returns the normal equations of the constant weights g of one layer's experts.

    They minimize the sum over tokens of ``||sum_i (g_i - w_i) h_i b_i||^2``. Equations of several
    batches add up.

    Args:
        hidden: the tokens in rank space h, (..., E, R), with the experts' scales.
        b: the second factors, (E, R, O).
        weights: the router's weights w, (..., E).
        mask: non-zero where a token is real, of the tokens' shape; None if all are.

    Returns:
        (E, 1 + E) float32: the inner products of the experts' outputs with the routed output, and
        then those with each other.
    """
    experts, rank, _ = b.shape
    h, w = hidden.astype(jnp.float32), jnp.broadcast_to(weights, hidden.shape[:-1])
    if mask is not None:
        keep = jnp.broadcast_to(mask.astype(bool), hidden.shape[:-2])
        h = jnp.where(keep[..., None, None], h, 0.0)
    routed = h * jnp.broadcast_to(w[..., None], h.shape).astype(h.dtype)
    routed = routed.reshape(-1, experts * rank)
    h, b = h.reshape(routed.shape), b.reshape(experts * rank, -1).astype(jnp.float32)
    # Outputs are never made: an inner product of h_i b_i and h_j b_j is one of rank space.
    products = b @ b.T
    blocks = (experts, rank, experts, rank)
    gram = (h.T @ h * products).reshape(blocks).sum((1, 3))
    moments = (h.T @ routed * products).reshape(blocks).sum((1, 2, 3))
    return jnp.concatenate([moments[:, None], gram], axis=1)


def solve_gates(equations: np.ndarray) -> np.ndarray:
    """Returns the weights (E,) float32 with the least squared error; 0 for an expert without use.

    >>> solve_gates(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    array([0.5, 0. ], dtype=float32)
    """
    moments, gram = np.float64(equations[:, 0]), np.float64(equations[:, 1:])
    return np.linalg.lstsq(gram, moments, rcond=1e-6)[0].astype(np.float32)
