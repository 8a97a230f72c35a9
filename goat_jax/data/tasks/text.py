"""`TextTask`: classification or regression of text, and its rows as labeled `Examples`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from goat_jax.data.metrics import metrics_for
from goat_jax.data.pipeline.overlap import mark_of
from goat_jax.data.sources.read import AND, Row, read_source
from goat_jax.data.sources.text_fields import check_text
from goat_jax.data.tasks.columns import check_scoring, read_column, read_label, read_tasks
from goat_jax.data.tasks.language import fill
from goat_jax.data.tasks.splits import (
    DEFAULT_SPLITS,
    check_held_out,
    check_limits,
    chosen_rows,
    source_of,
)
from goat_jax.errors import UserError
from goat_jax.validation.fields import check_fields


@dataclass(frozen=True)
class TextTask:
    """Classification (or regression) of a sentence or of a pair of sentences.

    Attributes:
      HEAD: the head that a model needs, as `head` of its config names it.
      name: the task's name in reports.
      train: the source of the training rows (`goat_jax.data.sources.read`).
      evaluation: the source of the evaluation rows.
      text: the names of one or two text columns.
      label: the name of the label column.
      labels: the class names in the order of their ids; empty for regression (float labels).
      metrics: names from `METRICS`; the first one is the primary metric.
      data_dir: TFDS's folder, the package cache, or the folder that relative paths start from.
      train_limit: the largest number of training rows, evenly spaced over the source.
      evaluation_limit: the largest number of evaluation rows, evenly spaced over the source.
      held_out: the number of rows of the training source that are held out for evaluation, with the
        same share of each class; if above 0, `evaluation` must be the same source.
      parts: the names of the evaluation sources, if `evaluation` joins several with `AND`; a
        metric "accuracy_PART" scores only one of them.
      id: the column with row ids, to detect rows that are in both splits; None: rows are compared
        by their text.
      task_id: the column with the number of a row's task (from 0), for rows of several tasks and
        methods that weight experts by task (MOELoRA).
      task_type: the column with the type of a row's task, 0 or 1, for methods that use it
        (LoRAMoE).
      prompt: the template that makes one text of the columns, such as
        ``"{premise} Therefore: {hypothesis}"``; empty: the columns are encoded as they are.

    Raises UserError if the fields do not fit together.

    >>> TextTask("tone", "a.csv", "b.csv", ("text",), "label", ("poor", "fine"), ("acuracy",))
    Traceback (most recent call last):
    goat_jax.errors.UserError: task tone: metric 'acuracy' is not valid: for 2 classes use one of \
accuracy, matthews, f1
    """

    HEAD: ClassVar[str] = "sequence"

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
    held_out: int = 0
    parts: tuple[str, ...] = ()
    id: str | None = None
    task_id: str | None = None
    task_type: str | None = None
    prompt: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "task.")
        if len(self.text) not in (1, 2):
            raise UserError(
                f"task {self.name}: text names {len(self.text)} columns {self.text}:"
                " give one, or two for pairs"
            )
        check_scoring(self.name, self.labels, self.metrics, self.parts, self.known_metrics())
        check_limits(self.name, self.train_limit, self.evaluation_limit)
        check_held_out(self)
        fill(self.prompt, dict.fromkeys(self.text, "text"))

    def known_metrics(self) -> Sequence[str]:
        """Returns the names of the metrics that can score the task."""
        return metrics_for(self.labels)

    def label_of(self, row: Row, where: str) -> Any:
        """Reads a row's label: a class id, or a number for regression."""
        return read_label(row, self.label, self.labels, where)

    def label_array(self, labels: Sequence[Any]) -> np.ndarray:
        """Returns the labels of several rows as a batch has them: int32 ids or float32 numbers."""
        return np.asarray(labels, np.int32 if self.labels else np.float32)

    def blank_labels(self, count: int) -> np.ndarray:
        """Returns 0 in place of the labels of some rows."""
        return self.label_array([0] * count)

    def label_name(self, label: Any) -> Any:
        """Returns a label as it is written for people: a class name, or a number."""
        return self.labels[label] if self.labels else label


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and labels of N rows.

    Attributes:
      texts: the text columns, one or two tuples of N strings.
      labels: the labels, [N] int32 class ids, float32 values for regression, or [N, C] float32,
        1 for each of a row's labels.
      marks: a digest of each row that identifies it (`goat_jax.data.pipeline.overlap`).
      parts: name of a part of the rows -> [N] float32, 1 where a row belongs to it.
      tasks: "task_ids", "task_types" -> [N] int32, if the task has these columns.

    >>> len(Examples((("fine", "poor"),), np.array([1, 0], np.int32)))
    2
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray = field(repr=False)
    marks: tuple[bytes, ...] = field(default=(), repr=False)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    tasks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)


def load_examples(task: TextTask, split: str) -> Examples:
    """Loads the rows of a task's `train` or `evaluation` source and checks each of them.

    Raises UserError naming source and row number (from 1) for a row without text or label, and for
    a label that is not a class of the task.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.mkdtemp()
    >>> _ = (Path(folder) / "a.jsonl").write_text('{"text": "fine film", "label": "good"}')
    >>> task = TextTask("tone", "a.jsonl", "a.jsonl", ("text",), "label", ("bad", "good"),
    ...                 ("accuracy",), data_dir=folder)
    >>> load_examples(task, "train").labels
    array([1], dtype=int32)
    """
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    marks: list[bytes] = []
    tasks: list[dict[str, int]] = []
    rows = rows_of(task, split)
    for _, row, where in rows:
        texts.append(_texts(row, task, where))
        labels.append(task.label_of(row, where))
        tasks.append(read_tasks(row, task, where))
        marks.append(mark_of(read_column(row, task.id, where) if task.id else texts[-1]))
    columns = tuple(zip(*texts, strict=True))
    count = len(source_of(task, split)[0].split(AND))
    parts = _parts(task, split, [part for part, _, _ in rows], count)
    return Examples(columns, task.label_array(labels), tuple(marks), parts, _stacked(tasks))


def rows_of(task: TextTask, split: str) -> list[tuple[int, Row, str]]:
    """Reads the rows of a task's `train` or `evaluation` source that belong to the split.

    Returns the number of each row's source, the row, and its place for error messages.

    Raises UserError for a source without rows.
    """
    source, limit = source_of(task, split)
    pieces = [
        (piece, read_source(piece, DEFAULT_SPLITS[split], task.data_dir))
        for piece in source.split(AND)
    ]
    places = [(part, i) for part, (_, rows) in enumerate(pieces) for i in range(len(rows))]
    if not places:
        raise UserError(f"{source}: no rows")

    def by_label(number: int) -> tuple[Any, bytes]:
        part, index = places[number]
        piece, rows = pieces[part]
        row, where = rows[index], f"{piece}: row {index + 1}"
        return task.label_of(row, where), mark_of(_texts(row, task, where))

    chosen = [places[number] for number in chosen_rows(task, split, len(places), limit, by_label)]
    return [
        (part, pieces[part][1][index], f"{pieces[part][0]}: row {index + 1}")
        for part, index in chosen
    ]


def unlabeled_examples(task: TextTask, rows: Sequence[Row], source: str) -> Examples:
    """Returns rows to predict from as `Examples`, with 0 in place of every label.

    Args:
      task: the task, which names the text columns.
      rows: one row or more.
      source: the rows' source, for error messages.

    Raises UserError naming source and row number (from 1) for a row without text.

    >>> task = TextTask("tone", "a", "b", ("text",), "label", ("bad", "good"), ("accuracy",))
    >>> unlabeled_examples(task, [{"text": "fine film"}], "new.csv").texts
    (('fine film',),)
    """
    texts, tasks = [], []
    for number, row in enumerate(rows, start=1):
        where = f"{source}: row {number}"
        texts.append(_texts(row, task, where))
        tasks.append(read_tasks(row, task, where))
    labels = task.blank_labels(len(rows))
    return Examples(tuple(zip(*texts, strict=True)), labels, tasks=_stacked(tasks))


def _stacked(tasks: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
    """Returns the task numbers and types of all rows by name, [N] int32 each."""
    return {name: np.array([row[name] for row in tasks], np.int32) for name in tasks[0]}


def _parts(task: TextTask, split: str, numbers: list[int], count: int) -> dict[str, np.ndarray]:
    """Returns each part's row mask; empty if the sources do not match the task's parts."""
    if split != "evaluation" or count != len(task.parts):
        return {}
    of_row = np.array(numbers)
    return {name: (of_row == i).astype(np.float32) for i, name in enumerate(task.parts)}


def _texts(row: Row, task: TextTask, where: str) -> tuple[str, ...]:
    values = {
        name: check_text(read_column(row, name, where), f"{where}: column {name!r}")
        for name in task.text
    }
    if not any(value.strip() for value in values.values()):
        names = ", ".join(map(repr, task.text))
        raise UserError(f"{where}: empty text in column {names}: leave the row out")
    return (fill(task.prompt, values),) if task.prompt else tuple(values.values())
