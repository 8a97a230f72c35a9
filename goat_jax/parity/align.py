"""Tools to compare singular vectors, which are defined up to a sign and sensitive to small gaps."""

import jax
import numpy as np

from goat_jax.core.svd import Segments


def align_signs(
    a: np.ndarray, b: np.ndarray, given_a: np.ndarray, given_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flips the signs of singular triplets to match the given ones; a @ b is unchanged.

    Args:
        a: the left factors, (..., E, I, R).
        b: the right factors, (..., E, R, O).
        given_a: the left factors to match, (..., E, I, R).
        given_b: the right factors to match, (..., E, R, O).

    >>> one = np.ones((1, 2, 1)), np.ones((1, 1, 3))
    >>> align_signs(-one[0], -one[1], *one)[0].ravel()
    array([1., 1.])
    """
    along = (a * given_a).sum(-2) + (b * given_b).sum(-1)
    sign = np.where(along < 0, -1.0, 1.0).astype(a.dtype)
    return a * sign[..., None, :], b * sign[..., :, None]


def svd_noise(kernel: np.ndarray, choice: Segments, num_experts: int, rank: int) -> float:
    """Bounds the difference of two correct float32 SVDs of a kernel in the chosen triplets.

    An error e of the kernel rotates a singular vector by up to e / gap, where gap is the distance
    of its singular value to the nearest other one (Davis and Kahan 1970; Wedin 1972). A float32 SVD
    is the exact SVD of a kernel with an error of about eps * s_1, so the bound is eps * s_1 / gap
    for the worst triplet.

    Args:
        kernel: the kernel, (I, O).
        choice: the function that chooses the experts' triplets.
        num_experts: the number of experts.
        rank: the rank of each expert.

    Returns:
        The bound; NaN for a kernel that is not finite, infinity for equal singular values.

    >>> from goat_jax.core.svd import principal
    >>> float(svd_noise(np.diag([4.0, 3.0, 1.0]), principal, 1, 1) / np.finfo(np.float32).eps)
    4.0
    """
    if not np.isfinite(kernel).all():
        return float("nan")
    values = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)
    taken = np.asarray(choice(len(values), num_experts, rank, jax.random.key(0))).ravel()
    # A kernel that is not square also has a null space, whose singular values are 0.
    others = values if kernel.shape[0] == kernel.shape[1] else np.append(values, 0.0)
    apart = np.abs(values[taken, None] - others[None, :])
    apart[np.arange(len(taken)), taken] = np.inf
    gap = float(apart.min())
    noise = float(np.finfo(np.float32).eps * values[0])
    return noise / gap if gap > 0 else float("inf")


LARGEST_NOISE = 1e-2
"""Largest `svd_noise` at which singular vectors are compared; above, they are near degenerate."""


def agreeing_steps(loads: np.ndarray, reference: np.ndarray) -> int:
    """Returns the number of leading steps in which two runs route their tokens to the same experts.

    Two runs whose initial values differ by rounding agree until a token is tied between two experts
    and is routed to a different one in each run. From then on they differ.

    Args:
        loads: the fraction of the tokens at every expert in one run, (steps, ...).
        reference: the same of the other run, (steps, ...).

    >>> agreeing_steps(np.array([[0.5, 0.5], [0.4, 0.6]]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    1
    """
    apart = np.abs(loads - reference).reshape(len(loads), -1).max(-1) > 1e-6
    return int(apart.argmax()) if apart.any() else len(loads)
