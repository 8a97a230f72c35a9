"""What a text task is, and its rows as labelled examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from goat_jax.data.metrics import METRICS, REGRESSION_METRICS
from goat_jax.data.sources import Row, read_source
from goat_jax.errors import UserError

# The TFDS split that a source means if it names none.
DEFAULT_SPLITS = {"train": "train", "evaluation": "validation"}


@dataclass(frozen=True)
class TextTask:
    """Classification (or regression) of a sentence or of a pair of sentences.

    Attributes:
      name: how reports call it.
      train, evaluation: source strings (`goat_jax.data.sources`).
      text: one or two column names.
      label: the label's column name.
      labels: class names in the order of their ids; empty for regression (float labels).
      metrics: names from `METRICS`, the first is the one that decides.
      data_dir: TFDS's folder, the package cache, or where relative paths start.
      train_limit, evaluation_limit: at most so many rows, evenly spaced over the source.

    Raises UserError where these do not fit together.

    >>> TextTask("tone", "a.csv", "b.csv", ("text",), "label", ("poor", "fine"), ("acuracy",))
    Traceback (most recent call last):
    goat_jax.errors.UserError: task tone: unknown metric 'acuracy': classification has accuracy, \
matthews, f1
    """

    name: str
    train: str
    evaluation: str
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    data_dir: str | None = None
    train_limit: int | None = None
    evaluation_limit: int | None = None

    def __post_init__(self) -> None:
        # One name may be written without a tuple; lists come from JSON.
        for name in ("text", "labels", "metrics"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if len(self.text) not in (1, 2):
            raise UserError(
                f"task {self.name}: text names {len(self.text)} columns {self.text}:"
                " give one, or two for pairs"
            )
        check_scoring(self.name, self.labels, self.metrics)
        check_limits(self.name, self.train_limit, self.evaluation_limit)


def check_scoring(name: str, labels: tuple[str, ...], metrics: tuple[str, ...]) -> None:
    """Raises UserError if a task's class names repeat, or its metrics do not go with them.

    >>> check_scoring("tone", ("poor", "fine"), ("accuracy",))
    """
    if len(labels) == 1 or len(set(labels)) != len(labels):
        raise UserError(
            f"task {name}: labels {labels}: give two or more different names, or none (regression)"
        )
    kind = "classification" if labels else "regression"
    known = [m for m in METRICS if (m in REGRESSION_METRICS) != bool(labels)]
    for metric in metrics:
        if metric not in known:
            raise UserError(
                f"task {name}: unknown metric {metric!r}: {kind} has {', '.join(known)}"
            )
    if not metrics:
        raise UserError(f"task {name}: no metric given: {kind} has {', '.join(known)}")


def check_limits(name: str, *limits: int | None) -> None:
    """Raises UserError for a limit that leaves no row.

    >>> check_limits("tone", 100, None)
    """
    for limit in limits:
        if limit is not None and limit < 1:
            raise UserError(
                f"task {name}: a limit of {limit} rows leaves nothing: give 1 or more, or None"
            )


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and labels of N rows.

    Attributes:
      texts: one or two tuples of N strings.
      labels: [N] int32 class ids, or float32 values for regression.

    >>> len(Examples((("fine", "poor"),), np.array([1, 0], np.int32)))
    2
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)


def load_examples(task: TextTask, split: str) -> Examples:
    """The rows of a task's `train` or `evaluation` source, checked one by one.

    Raises UserError naming source and row number (from 1) for a row without its text or label, and
    for a label that is no class of the task.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.mkdtemp()
    >>> _ = (Path(folder) / "a.jsonl").write_text('{"text": "fine film", "label": "good"}')
    >>> task = TextTask("tone", "a.jsonl", "a.jsonl", ("text",), "label", ("bad", "good"),
    ...                 ("accuracy",), data_dir=folder)
    >>> load_examples(task, "train").labels
    array([1], dtype=int32)
    """
    source, limit = source_of(task, split)
    rows = read_source(source, DEFAULT_SPLITS[split], task.data_dir)
    if not rows:
        raise UserError(f"{source}: no rows")
    chosen = spaced(len(rows), limit)
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    for index in chosen:
        where = f"{source}: row {index + 1}"
        texts.append(_texts(rows[index], task.text, where))
        labels.append(read_label(rows[index], task.label, task.labels, where))
    dtype = np.int32 if task.labels else np.float32
    return Examples(tuple(zip(*texts, strict=True)), np.asarray(labels, dtype))


class Splits(Protocol):
    """What tasks of every kind say of their rows."""

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


def source_of(task: Splits, split: str) -> tuple[str, int | None]:
    """The source of a task's split "train" or "evaluation", and how many rows it may have at most.

    >>> source_of(TextTask("tone", "a", "b", ("x",), "y", (), ("pearson",)), "train")
    ('a', None)
    """
    if split not in DEFAULT_SPLITS:
        raise UserError(f"task {task.name} has no split {split!r}: use train or evaluation")
    if split == "train":
        return task.train, task.train_limit
    return task.evaluation, task.evaluation_limit


def spaced(count: int, limit: int | None) -> Sequence[int]:
    """All indices below count, or `limit` evenly spaced ones: files are often sorted by label.

    >>> spaced(10, 3)
    [0, 3, 6]
    """
    if limit is None or limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]


def read_column(row: Row, name: str, where: str) -> Any:
    """A row's value; UserError if there is none.

    >>> read_column({"label": 1}, "label", "row 1")
    1
    """
    value = row.get(name)
    if value is None:
        raise UserError(f"{where}: no value in column {name!r} (the row has {', '.join(row)})")
    return value


def _texts(row: Row, columns: tuple[str, ...], where: str) -> tuple[str, ...]:
    values = tuple(read_column(row, name, where) for name in columns)
    for name, value in zip(columns, values, strict=True):
        if not isinstance(value, str):
            raise UserError(f"{where}: column {name!r} holds {value!r}, not text")
    if not any(value.strip() for value in values):
        raise UserError(f"{where}: empty text in column {', '.join(map(repr, columns))}")
    return values


def read_label(row: Row, column: str, labels: tuple[str, ...], where: str) -> float:
    """A class name, or the id of a class; names win, so classes may be called "1" and "2".

    >>> read_label({"label": "good"}, "label", ("bad", "good"), "row 1")
    1
    """
    value = read_column(row, column, where)
    if str(value) in labels:
        return labels.index(str(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not labels and np.isfinite(number):
        return number
    if number in range(len(labels)):
        return number
    allowed = f"{', '.join(labels)} (ids 0 to {len(labels) - 1})"
    raise UserError(f"{where}: label {value!r}: expected {allowed if labels else 'a number'}")
