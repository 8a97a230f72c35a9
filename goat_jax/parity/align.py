"""Singular vectors are known up to a sign, and only as well as singular values are apart."""

import jax
import numpy as np

from goat_jax.core.svd import Segments


def align_signs(
    a: np.ndarray, b: np.ndarray, given_a: np.ndarray, given_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flips singular triplets so that they point the way the given ones do; a @ b is unchanged.

    Args:
        a, given_a: (..., E, I, R).  b, given_b: (..., E, R, O).

    >>> one = np.ones((1, 2, 1)), np.ones((1, 1, 3))
    >>> align_signs(-one[0], -one[1], *one)[0].ravel()
    array([1., 1.])
    """
    along = (a * given_a).sum(-2) + (b * given_b).sum(-1)
    sign = np.where(along < 0, -1.0, 1.0).astype(a.dtype)
    return a * sign[..., None, :], b * sign[..., :, None]


def svd_noise(kernel: np.ndarray, choice: Segments, num_experts: int, rank: int) -> float:
    """How far two correct float32 SVDs of a kernel (I, O) may differ in the triplets of a choice.

    An error e of the kernel turns a singular vector by up to e / gap, gap being the distance of its
    singular value from the next one (Davis and Kahan 1970; Wedin 1972). A float32 SVD is exact for
    a kernel that is off by about eps * s_1, so this is eps * s_1 / gap for the worst triplet.

    >>> from goat_jax.core.svd import principal
    >>> float(svd_noise(np.diag([4.0, 3.0, 1.0]), principal, 1, 1) / np.finfo(np.float32).eps)
    4.0
    """
    if not np.isfinite(kernel).all():
        return float("nan")
    values = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)
    taken = np.asarray(choice(len(values), num_experts, rank, jax.random.key(0))).ravel()
    # A kernel that is not square has a null space, too: its singular values are 0.
    others = values if kernel.shape[0] == kernel.shape[1] else np.append(values, 0.0)
    apart = np.abs(values[taken, None] - others[None, :])
    apart[np.arange(len(taken)), taken] = np.inf
    gap = float(apart.min())
    noise = float(np.finfo(np.float32).eps * values[0])
    return noise / gap if gap > 0 else float("inf")


LARGEST_NOISE = 1e-2
"""Above this `svd_noise` singular vectors say nothing: the spectrum is as good as degenerate."""


def agreeing_steps(loads: np.ndarray, reference: np.ndarray) -> int:
    """The number of leading steps in which two runs send their tokens to the same experts.

    Training from two starts that differ by rounding is one run until a token that sits between two
    experts goes to one here and to the other there; from then on they are two.

    Args:
        loads, reference: (steps, ...) share of the tokens at every expert, of the two runs.

    >>> agreeing_steps(np.array([[0.5, 0.5], [0.4, 0.6]]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    1
    """
    apart = np.abs(loads - reference).reshape(len(loads), -1).max(-1) > 1e-6
    return int(apart.argmax()) if apart.any() else len(loads)
