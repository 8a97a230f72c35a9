"""Singular triplets in float32 from products and eigenvectors, which accelerators have."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from goat_jax.core.svd import Svd
from goat_jax.typing import Array

LEAST = 16
"""Fewest singular values that are decomposed once more."""

FIRST_CUT = 8
"""Part of the spectrum, one in so many, that only the first decomposition has to get right."""

SMALL_ANGLE = 0.1
"""Largest correction of a vector along another one that counts as a first-order correction."""

_dot = partial(jnp.dot, precision="highest")


def triplets_by_gram(kernel: Array, index: Array | None = None) -> tuple[Svd[Array], Array]:
    """Computes triplets of a kernel (I, O) in float32 from the Gram matrix of its smaller side.

    The Gram matrix squares singular values, so eigenvectors that differ in float32's last digit
    mix triplets below about 1e-3 of the largest. Two steps mend that. The kernel's part in all but
    the first eighth of the spectrum is decomposed again by itself, the smaller half of that again,
    and so on, since rounding is relative to the largest value of what is decomposed. Then the
    triplets asked for are corrected to first order against all others, as in Jacobi's method, and
    made orthonormal to second order. No step is taken for granted: the error is measured.

    Args:
        kernel: (I, O), any float dtype.
        index: the indices (n,) of the triplets; None for all of them.

    Returns:
        u (I, n), s (n,), vt (n, O), and the largest error: of ``kernel v = s u`` and
        ``kernel^T u = s v`` over the largest singular value, and of orthonormality.

    >>> svd, error = triplets_by_gram(jnp.diag(jnp.array([3.0, 4.0, 1.0])), jnp.array([0, 2]))
    >>> svd.s, bool(error < 1e-6)
    (Array([4., 1.], dtype=float32), True)
    """
    kernel = kernel.astype(jnp.float32)
    tall = kernel.shape[0] > kernel.shape[1]
    flat = kernel.T if tall else kernel
    index = jnp.arange(len(flat)) if index is None else index
    left, rows = _diagonalized(flat)
    size = jnp.linalg.norm(rows, axis=1)
    order = jnp.argsort(-size)
    left, rows = _corrected(left[:, order], rows[order], index)
    s = jnp.linalg.norm(rows, axis=1)
    right = rows / jnp.where(s > 0, s, 1)[:, None]
    same = (index[:, None] == index[None]).astype(jnp.float32)
    left, right = _orthonormal(left, same), _orthonormal(right.T, same).T
    error = _error(flat, Svd(left, s, right), same, size.max())
    return (Svd(right.T, s, left.T) if tall else Svd(left, s, right)), error


def _diagonalized(flat: Array) -> tuple[Array, Array]:
    """Returns an orthogonal x (H, H) and y = x^T flat (H, W) with nearly orthogonal rows."""
    left = _eigenvectors(flat)
    rows = _dot(left.T, flat)
    start = len(rows) // FIRST_CUT
    while len(rows) - start >= LEAST:
        turn = _eigenvectors(rows[start:])
        left = left.at[:, start:].set(_dot(left[:, start:], turn))
        rows = rows.at[start:].set(_dot(turn.T, rows[start:]))
        start = (len(rows) + start) // 2
    return left, rows


def _eigenvectors(rows: Array) -> Array:
    """Returns the eigenvectors of rows rows^T, the largest eigenvalue's first."""
    return jnp.linalg.eigh(_dot(rows, rows.T))[1][:, ::-1]


def _corrected(left: Array, rows: Array, index: Array) -> tuple[Array, Array]:
    """Returns some columns of `left` and rows of `rows`, turned against all others.

    The angle between two of nearly equal length is unknown, and does not matter: both are then
    equally good triplets.
    """
    chosen = rows[index]
    squares, lengths = jnp.square(chosen).sum(1), jnp.square(rows).sum(1)
    gap = squares[None] - lengths[:, None]
    mixed = _dot(rows, chosen.T)
    other = index[None] != jnp.arange(len(rows))[:, None]
    small = other & (jnp.abs(mixed) < SMALL_ANGLE * jnp.abs(gap))
    angle = jnp.where(small, mixed / jnp.where(small, gap, 1), 0)
    columns = left[:, index] + _dot(left, angle)
    length = jnp.linalg.norm(columns, axis=0)
    return columns / length[None], (chosen + _dot(angle.T, rows)) / length[:, None]


def _orthonormal(columns: Array, same: Array) -> Array:
    """Returns columns whose departure from orthonormality is squared; `same` as in `_error`.

    Rounding turns the right vectors of values near float32's digits of the largest towards each
    other, and the corrections turn neighbours of nearly equal length. Both are small turns. Larger
    ones, of triplets that float32 cannot tell apart, stay too large to be accepted.
    """
    departure = _dot(columns.T, columns) - same
    return columns - _dot(columns, departure / (2 * same.sum(1, keepdims=True)))


def _error(flat: Array, svd: Svd[Array], same: Array, largest: Array) -> Array:
    """Returns the largest error of triplets; `same` is the identity if they are distinct."""
    forth = jnp.linalg.norm(_dot(flat, svd.vt.T) - svd.u * svd.s[None], axis=0)
    back = jnp.linalg.norm(_dot(svd.u.T, flat) - svd.vt * svd.s[:, None], axis=1)
    turned = [jnp.abs(_dot(*pair) - same) for pair in ((svd.u.T, svd.u), (svd.vt, svd.vt.T))]
    return jnp.maximum(jnp.maximum(forth, back).max() / largest, jnp.maximum(*turned).max())


def gram_flops(rows: int, columns: int) -> int:
    """Returns the FLOPs of `triplets_by_gram` without its corrections, by counts of its parts.

    Products count twice their multiplications, the eigenvectors of a matrix of H rows 9 H^3
    (Golub and Van Loan).

    >>> f"{gram_flops(4096, 11008):.3g}"
    '2.73e+12'
    """
    side, wide = sorted((rows, columns))
    total = 4 * side**2 * wide + 9 * side**3
    part = side - side // FIRST_CUT
    while part >= LEAST:
        total += 4 * part**2 * wide + 9 * part**3 + 2 * side * part**2
        part -= part // 2
    return total
