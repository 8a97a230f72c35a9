"""Singular value decomposition of a kernel, and its segments, from which the experts start."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError
from goat_jax.typing import Array, Key

A = TypeVar("A")


class Svd(NamedTuple, Generic[A]):
    """Thin SVD ``kernel = u @ diag(s) @ vt`` in float32, with descending singular values.

    Attributes:
        u: left singular vectors (..., I, H), H = min(I, O).
        s: singular values (..., H).
        vt: right singular vectors, transposed (..., H, O).

    Of jax arrays, of numpy arrays on the host, or of what describes an array, such as a sharding.
    """

    u: A
    s: A
    vt: A


def svd_of_kernel(kernel: Array) -> Svd[Array]:
    """Computes the SVD of a kernel (..., I, O) of any float dtype in float32.

    Leading axes are batch axes.

    >>> k = jnp.array([[3.0, 0.0], [0.0, 4.0]], jnp.bfloat16)
    >>> svd_of_kernel(k).s
    Array([4., 3.], dtype=float32)
    """
    return Svd(*jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False))


GRAM_RANGE = 1e-5
"""Smallest ratio of a singular value to the largest that a float64 Gram matrix resolves to float32
precision."""


def svd_by_gram(kernel: np.ndarray) -> Svd[np.ndarray]:
    """Computes the SVD of one kernel (I, O) from its smaller Gram matrix in float64.

    A Gram matrix squares the singular values. An eigenvalue's error of about H eps s_1^2, with
    eps = 1.1e-16, becomes an error of H eps s_1^2 / (2 s_k) in s_k. For s_k >= 1e-5 s_1 and
    H = 4096 this is below 2.3e-8 s_1, under float32's rounding (6e-8), and u and vt are orthonormal
    to float32 precision too. LAPACK decomposes a kernel with smaller singular values in float64.

    >>> svd_by_gram(np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]], np.float32)).s
    array([4., 3.], dtype=float32)
    """
    wide = np.asarray(kernel, np.float64)
    tall = wide.shape[0] > wide.shape[1]
    flat = wide.T if tall else wide
    squares, vectors = np.linalg.eigh(flat @ flat.T)
    values, left = np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1]
    if not values[-1] > GRAM_RANGE * values[0]:
        parts = np.linalg.svd(wide, full_matrices=False)
    else:
        right = (left.T @ flat) / values[:, None]
        parts = (right.T, values, left.T) if tall else (left, values, right)
    return Svd(*(np.asarray(part, np.float32) for part in parts))


def svd_flops(rows: int, columns: int) -> int:
    """Returns the FLOPs of `svd_by_gram`: products as usual, and 9 H^3 for H eigenvectors.

    The count of eigenvectors is Golub and Van Loan's.

    >>> f"{svd_flops(4096, 11008):.3g}"
    '1.36e+12'
    """
    side, wide = sorted((rows, columns))
    return 4 * side**2 * wide + 9 * side**3


Segments = Callable[[int, int, int, Key], Array]
"""Type of a choice: (h, num_experts, rank, key) -> the index (E, R) of every expert's triplets."""


def _runs(starts: Array, rank: int) -> Array:
    return starts[:, None] + jnp.arange(rank)[None, :]


def block_heads(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes the first R of each of E equal blocks of the spectrum, GOAT's choice O (paper eq. 13).

    >>> block_heads(24, 4, 2, jax.random.key(0))[:, 0]
    Array([ 0,  6, 12, 18], dtype=int32)
    """
    del key
    return _runs(jnp.arange(num_experts) * (h // num_experts), rank)


def block_tails(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes the last R of each of E equal blocks (published code: ``goat_mini``)."""
    del key
    return _runs((jnp.arange(num_experts) + 1) * (h // num_experts) - rank, rank)


def principal(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes R triplets from j * R onwards for expert j, the largest first (choice P)."""
    del h, key
    return _runs(jnp.arange(num_experts) * rank, rank)


def minor(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes R triplets from h - (j + 1) * R onwards for expert j, the paper's choice M.

    The first expert gets the smallest triplets.
    """
    del key
    return _runs(h - (jnp.arange(num_experts) + 1) * rank, rank)


def minor_descending(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes the triplets of `minor` with experts in the published code's order (``milora``)."""
    del key
    return _runs(h - (num_experts - jnp.arange(num_experts)) * rank, rank)


def principal_and_minor(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes half of all triplets from each end of the spectrum (published: ``pissa_milora``)."""
    del key
    total = num_experts * rank
    ends = jnp.concatenate([jnp.arange(total // 2), jnp.arange(h - (total - total // 2), h)])
    return ends.reshape(num_experts, rank)


def spaced(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Takes E * R triplets evenly spaced over the spectrum: for one adapter, those of E experts.

    >>> spaced(24, 1, 4, jax.random.key(0))
    Array([[ 0,  6, 12, 18]], dtype=int32)
    """
    del key
    total = num_experts * rank
    return (jnp.arange(total) * (h // total)).reshape(num_experts, rank)


def random_blocks(h: int, num_experts: int, rank: int, key: Key) -> Array:
    """Draws E distinct blocks of R triplets from the h // R aligned ones (choice R).

    The paper has k_j = j * t' with a random t', which exceeds the range for large j. Distinct
    aligned blocks always exist and never give two experts the same triplet.
    """
    starts = jax.random.choice(key, h // rank, (num_experts,), replace=False) * rank
    return _runs(starts, rank)


SEGMENTS: dict[str, Segments] = {
    "block_heads": block_heads,
    "block_tails": block_tails,
    "principal": principal,
    "minor": minor,
    "minor_descending": minor_descending,
    "principal_and_minor": principal_and_minor,
    "spaced": spaced,
    "random": random_blocks,
}
"""Choices of segments by name."""


def moved(index: Array, h: int, offset: float) -> Array:
    """Shifts an index (E, R) down a spectrum of h values by a fraction of the room below it.

    Args:
        index: the indices of every expert's triplets.
        h: the number of singular values.
        offset: the fraction, 0 to 1.

    >>> moved(jnp.array([[0, 1]]), 10, 0.5), moved(jnp.array([[0, 1]]), 10, 1.0)
    (Array([[4, 5]], dtype=int32), Array([[8, 9]], dtype=int32))
    """
    if offset == 0.0:
        return index
    room = (h - 1 - index.max()).astype(jnp.float32)
    return index + jnp.round(room * offset).astype(index.dtype)


def check_segments(h: int, num_experts: int, rank: int) -> None:
    """Raises `UserError` if a spectrum of h values cannot hold E disjoint segments of R."""
    if num_experts * rank > h:
        raise UserError(
            f"total rank {num_experts * rank} is above the layer's smaller side {h}: "
            f"choose a total rank of at most {h}"
        )


def take_segments(svd: Svd, index: Array) -> Svd:
    """Gathers every expert's triplets by an index (E, R): u (E, I, R), s (E, R), vt (E, R, O).

    >>> svd = svd_of_kernel(jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0])))
    >>> take_segments(svd, jnp.array([[0], [2]])).s
    Array([[4.],
           [2.]], dtype=float32)
    """
    u = jnp.moveaxis(svd.u[:, index], 0, 1)
    return Svd(u, svd.s[index], svd.vt[index, :])


def share_of_spectrum(s: Array | np.ndarray, index: Array | np.ndarray) -> np.ndarray:
    """Returns the fraction of the sum of squared singular values in each expert's segment, (E,).

    Args:
        s: all singular values (H,).
        index: the indices of every expert's triplets (E, R).
    """
    energy = np.asarray(s, np.float64) ** 2
    return energy[np.asarray(index)].sum(-1) / energy.sum()
