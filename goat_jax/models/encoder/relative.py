"""Relative positions: how far a key is from its query, in buckets that widen with the distance."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from goat_jax.typing import Array

BUCKETS = 32
"""Buckets of `bias_buckets`, whatever the size of the table."""


@dataclasses.dataclass(frozen=True)
class Disentangled:
    """Attention to relative positions by vectors of their own (He et al. 2021, arXiv 2006.03654).

    Attributes:
        content_to_position: whether queries are compared with the keys of positions (c2p).
        position_to_content: whether keys are compared with the queries of positions (p2c).
        shared: whether the content's query and key layers make those of positions, too; otherwise
            positions have layers of their own.
        reach: the largest distance that has a vector.
        buckets: the number of vectors per direction if distances share them; None for one each.
        normed: whether the vectors are normalized.
    """

    content_to_position: bool
    position_to_content: bool
    shared: bool
    reach: int
    buckets: int | None
    normed: bool

    @property
    def span(self) -> int:
        """The number of vectors per direction."""
        return self.reach if self.buckets is None else self.buckets

    def rows(self, tokens: int) -> Array:
        """Returns the row (T, T) of each query and key in the table of vectors.

        >>> Disentangled(True, True, True, reach=2, buckets=None, normed=False).rows(4)[3]
        Array([3, 3, 3, 2], dtype=int32)
        """
        distances = np.arange(1 - tokens, tokens)
        if self.buckets is not None:
            distances = _log_distances(distances, self.buckets, self.reach)
        return _by_pair(np.clip(distances + self.span, 0, 2 * self.span - 1), tokens)


def _log_distances(distances: np.ndarray, buckets: int, reach: int) -> np.ndarray:
    """Returns distances as they are up to half of the buckets, and their logarithms beyond."""
    middle = buckets // 2
    near = np.abs(distances) < middle
    size = np.where(near, max(1, middle - 1), np.abs(distances)).astype(np.float32)
    # In the order and precision of the published code: a ceiling depends on the last bit.
    top = np.log(np.float32((reach - 1) / middle))
    far = np.ceil(np.log(size / np.float32(middle)) / top * np.float32(middle - 1)) + middle
    return np.where(size <= middle, distances, far * np.sign(distances)).astype(np.int64)


def bias_buckets(tokens: int) -> Array:
    """Returns the bucket (T, T) of each query and key, from 0 to `BUCKETS` - 1 (T5, MPNet).

    >>> bias_buckets(3)
    Array([[ 0, 17, 18],
           [ 1,  0, 17],
           [ 2,  1,  0]], dtype=int32)
    """
    distances = np.arange(1 - tokens, tokens)
    size, half = np.abs(distances), BUCKETS // 2
    exact, furthest = half // 2, 128
    growth = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = exact + (growth / np.float32(math.log(furthest / exact)) * (half - exact)).astype(int)
    buckets = np.where(size < exact, size, np.minimum(far, half - 1))
    return _by_pair(buckets + half * (distances < 0), tokens)


def _by_pair(values: np.ndarray, tokens: int) -> Array:
    """Returns the value (T, T) of each query's distance to each key; values are (2 T - 1,)."""
    places = jnp.arange(tokens, dtype=jnp.int32)
    distance = places[:, None] - places[None]
    return jnp.asarray(values.astype(np.int32))[distance + tokens - 1]
