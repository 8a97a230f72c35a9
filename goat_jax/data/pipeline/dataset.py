"""`Rows`: an indexable dataset with known row lengths that collates a batch on demand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, Protocol

import numpy as np

from goat_jax.data.pipeline.token_ids import check_ids

Batch = dict[str, np.ndarray]
Draw = tuple[int, ...] | None
"""Seed of the randomness in a training batch: (seed, batch number); None in evaluation."""

FILLER = -1
"""Row number of a batch position that no row fills."""


class Rows(Protocol):
    """Protocol of a dataset that can be batched.

    Attributes:
      lengths: the row lengths, [N] int32; rows of similar length share a batch and are padded to
        one length.
      truncated: the number of rows whose end was cut off.
      dropped: the number of rows left out because they had no usable content.
      marks: a digest of each row (or text) that identifies it (`goat_jax.data.pipeline.overlap`).
      lookups: a table's name in `goat_jax.data.pipeline.token_ids.TABLES` -> the ids that are
        looked up in it.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def truncated(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    @property
    def marks(self) -> Sequence[bytes]: ...

    @property
    def lookups(self) -> Mapping[str, Iterable[np.ndarray]]: ...

    @property
    def contents(self) -> Any:
        """Everything the model is trained on, or digests: arrays, lists, mappings, numbers."""
        ...

    def __len__(self) -> int: ...

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """Collates these rows [B] into a batch padded to `length`.

        A `FILLER` position repeats the last real row with weight 0. Every batch has `weights` [B].
        """
        ...


def fill_places(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces `FILLER` by the last real row; returns row numbers and weights [B] float32.

    >>> numbers, weights = fill_places(np.array([4, 2, -1]))
    >>> numbers.tolist(), weights.tolist()
    ([4, 2, 2], [1.0, 1.0, 0.0])
    """
    weights = (rows != FILLER).astype(np.float32)
    last = rows[rows != FILLER][-1] if weights.any() else 0
    return np.where(rows == FILLER, last, rows), weights


class Tokens(Protocol):
    """Protocol of tokenized rows, possibly of several tasks."""

    @property
    def input_ids(self) -> list[np.ndarray]: ...

    @property
    def tasks(self) -> Mapping[str, np.ndarray]: ...


def lookups_of(rows: Tokens) -> dict[str, list[np.ndarray]]:
    """Returns `Rows.lookups` of tokenized rows."""
    tasks = [rows.tasks["task_ids"]] if "task_ids" in rows.tasks else []
    return {"vocab_size": rows.input_ids, "num_tasks": tasks}


def with_known_ids(rows: Rows, sizes: Mapping[str, int]) -> Rows:
    """Returns the rows with a padding id that the model's vocabulary contains.

    Args:
      rows: the rows to check.
      sizes: the sizes of the model's tables (`goat_jax.data.pipeline.token_ids.table_sizes`).

    Raises UserError if a row has an id without a row in its table.
    """
    check_ids(rows.lookups, sizes)
    pad = getattr(rows, "pad_id", 0)
    # Padding is masked everywhere, so any id that is in the table will do.
    if pad < sizes.get("vocab_size", pad + 1):
        return rows
    assert is_dataclass(rows) and not isinstance(rows, type)  # all rows with a padding id
    return replace(rows, pad_id=0)


def pad_right(arrays: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    """Pads integer arrays of at most `length` on the right with `value`: [B, length] int32.

    >>> pad_right([np.array([4, 5])], 3, 0).tolist()
    [[4, 5, 0]]
    """
    padded = np.full((len(arrays), length), value, np.int32)
    for place, array in zip(padded, arrays, strict=True):
        place[: len(array)] = array
    return padded
