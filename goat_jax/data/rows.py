"""What batches are made of: numbered rows of known lengths, gathered into arrays on demand."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]
Draw = tuple[int, ...] | None
"""Numbers that seed what is random in a training batch (seed, batch number); None in evaluation."""

FILLER = -1
"""Marks a place of a batch that no row fills."""


class Rows(Protocol):
    """Rows that can be batched.

    Attributes:
      lengths: [N] int32; rows of similar length share a batch, padded to one length.
      truncated: how many rows lost their end.
      dropped: how many were left out, nothing usable being in them.
      marks: what tells each row (or text) from others (`goat_jax.data.overlap`).
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def truncated(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    @property
    def marks(self) -> Sequence[bytes]: ...

    def __len__(self) -> int: ...

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """The batch of these rows [B], padded to `length`.

        A `FILLER` place repeats the last real row with weight 0. Every batch has `weights` [B].
        """
        ...


def fill_places(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers without `FILLER` (the last real row in its place) and weights [B] float32.

    >>> numbers, weights = fill_places(np.array([4, 2, -1]))
    >>> numbers.tolist(), weights.tolist()
    ([4, 2, 2], [1.0, 1.0, 0.0])
    """
    weights = (rows != FILLER).astype(np.float32)
    last = rows[rows != FILLER][-1] if weights.any() else 0
    return np.where(rows == FILLER, last, rows), weights


def pad_right(arrays: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    """[B, length] int32 of integer arrays that are at most so long.

    >>> pad_right([np.array([4, 5])], 3, 0).tolist()
    [[4, 5, 0]]
    """
    padded = np.full((len(arrays), length), value, np.int32)
    for place, array in zip(padded, arrays, strict=True):
        place[: len(array)] = array
    return padded
