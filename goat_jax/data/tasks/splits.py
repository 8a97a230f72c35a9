"""Rows of a task's training and evaluation splits: their source, limits and the held-out part."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from goat_jax.errors import UserError

DEFAULT_SPLITS = {"train": "train", "evaluation": "validation"}
"""Split of a task -> the TFDS split of a source that does not name one."""


class Splits(Protocol):
    """Protocol of the fields about rows that tasks of every kind have."""

    @property
    def name(self) -> str: ...

    @property
    def train(self) -> str: ...

    @property
    def evaluation(self) -> str: ...

    @property
    def train_limit(self) -> int | None: ...

    @property
    def evaluation_limit(self) -> int | None: ...

    @property
    def held_out(self) -> int: ...


def check_limits(name: str, *limits: int | None) -> None:
    """Raises UserError for a limit below 1.

    >>> check_limits("tone", 100, None)
    """
    for limit in limits:
        if limit is not None and limit < 1:
            raise UserError(
                f"task {name}: a limit of {limit} rows leaves nothing: give 1 or more, or None"
            )


def check_held_out(task: Splits) -> None:
    """Raises UserError unless held-out rows come from the training source, and number 0 or more.

    >>> from goat_jax.data.tasks.text import TextTask
    >>> check_held_out(TextTask("tone", "a", "a", ("x",), "y", (), ("pearson",), held_out=9))
    """
    if task.held_out < 0 or (task.held_out and task.evaluation != task.train):
        raise UserError(
            f"task {task.name}: held_out {task.held_out}: 0, or how many rows of the training "
            "source to hold out with evaluation the same source as train"
        )


def source_of(task: Splits, split: str) -> tuple[str, int | None]:
    """Returns the source and the row limit of a task's split "train" or "evaluation".

    >>> from goat_jax.data.tasks.text import TextTask
    >>> source_of(TextTask("tone", "a", "b", ("x",), "y", (), ("pearson",)), "train")
    ('a', None)
    """
    if split not in DEFAULT_SPLITS:
        raise UserError(f"task {task.name} has no split {split!r}: use train or evaluation")
    if split == "train":
        return task.train, task.train_limit
    return task.evaluation, task.evaluation_limit


def spaced(count: int, limit: int | None) -> Sequence[int]:
    """Returns all indices below count, or `limit` evenly spaced ones.

    Evenly spaced, since files are often sorted by label.

    >>> spaced(10, 3)
    [0, 3, 6]
    """
    if limit is None or limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]


def chosen_rows(
    task: Splits,
    split: str,
    count: int,
    limit: int | None,
    by: Callable[[int], Any] = int,
) -> Sequence[int]:
    """Returns the indices of a source's rows that belong to a split.

    Args:
      task: the task, whose `held_out` rows of the training source are the evaluation rows.
      split: "train" or "evaluation".
      count: the number of rows of the source.
      limit: the largest number of rows of the split, evenly spaced; None: all.
      by: index -> key to sort the rows by before the held-out ones are taken, evenly spaced: the
        rows of every class are then held out in the same share. Rows stay in their order.

    Raises UserError if the held-out rows leave none to train on.

    >>> from goat_jax.data.tasks.text import TextTask
    >>> task = TextTask("tone", "a", "a", ("x",), "y", (), ("pearson",), held_out=2)
    >>> chosen_rows(task, "train", 6, None)
    [1, 2, 4, 5]
    """
    if not task.held_out:
        return spaced(count, limit)
    if task.held_out >= count:
        raise UserError(
            f"task {task.name}: {task.held_out} rows held out of {count} leave none to train on"
        )
    order = sorted(range(count), key=by)
    held = {order[place] for place in spaced(count, task.held_out)}
    rows = [row for row in range(count) if (row in held) == (split == "evaluation")]
    return [rows[place] for place in spaced(len(rows), limit)]
