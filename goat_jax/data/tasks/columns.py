"""Reads columns that tasks of several kinds have: a value, a label, the number of a row's task."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from goat_jax.data.metrics import metrics_for, split_metric
from goat_jax.data.sources.read import Row
from goat_jax.data.sources.text_fields import shown
from goat_jax.errors import UserError


def read_column(row: Row, name: str, where: str) -> Any:
    """Returns a column's value; raises UserError if it is missing or null.

    >>> read_column({"label": 1}, "label", "row 1")
    1
    """
    value = row.get(name)
    if value is None:
        raise UserError(f"{where}: no value in column {name!r} (the row has {', '.join(row)})")
    return value


class OfTasks(Protocol):
    """Protocol of a task whose rows may come from several tasks."""

    @property
    def task_id(self) -> str | None: ...

    @property
    def task_type(self) -> str | None: ...


def read_tasks(row: Row, task: OfTasks, where: str) -> dict[str, int]:
    """Reads a row's task number and task type, keyed as in batches; columns not set are left out.

    >>> from goat_jax.data.tasks.text import TextTask
    >>> task = TextTask("t", "a", "b", ("x",), "y", (), ("pearson",), task_id="set")
    >>> read_tasks({"set": 2}, task, "row 1")
    {'task_ids': 2}
    """
    values = {}
    for name, column in (("task_ids", task.task_id), ("task_types", task.task_type)):
        if column is None:
            continue
        value = read_column(row, column, where)
        highest = 1 if name == "task_types" else np.iinfo(np.int32).max
        # CSV values are text; the bound spares int() very long digits, which are too large anyway.
        if isinstance(value, str) and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not 0 <= value <= highest:
            kind = "0 or 1" if name == "task_types" else "a number from 0"
            raise UserError(f"{where}: column {column!r} holds {value!r}: expected {kind}")
        values[name] = int(value)
    return values


def check_scoring(
    name: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    parts: tuple[str, ...] = (),
    known: Sequence[str] | None = None,
) -> None:
    """Raises UserError if class names repeat, or if the metrics do not match the labels.

    Args:
      name: the task's name, for the message.
      labels: the class names; empty for regression.
      metrics: the names of the metrics.
      parts: the parts of the rows that a metric may score.
      known: the valid metrics; None: those of one class, or one number, a row.

    >>> check_scoring("tone", ("poor", "fine"), ("accuracy",))
    """
    if len(labels) == 1 or len(set(labels)) != len(labels):
        raise UserError(
            f"task {name}: labels {labels}: give two or more different names, or none (regression)"
        )
    kind = f"{len(labels)} classes" if labels else "regression"
    known = metrics_for(labels) if known is None else known
    for metric in metrics:
        base, part = split_metric(metric)
        if base not in known or (part and part not in parts):
            raise UserError(
                f"task {name}: metric {metric!r} is not valid: for {kind} use one of "
                f"{', '.join(known)}"
            )
    if not metrics:
        raise UserError(
            f"task {name}: no metric is given: for {kind} use one of {', '.join(known)}"
        )


def read_label(
    row: Row, column: str, labels: tuple[str, ...], where: str, written: tuple[str, ...] = ()
) -> float:
    """Reads a label: a class name or a class id, or a number for regression.

    Names take precedence over ids, so classes may be called "1" and "2".

    Args:
      row: the row.
      column: the label column.
      labels: the class names in the order of their ids; empty for regression.
      where: the source and row, for the error message.
      written: the class names that the rows use, in the order of `labels`, if they differ.

    >>> read_label({"label": "good"}, "label", ("bad", "good"), "row 1")
    1
    """
    value = read_column(row, column, where)
    for names in (labels, written):
        if str(value) in names:
            return names.index(str(value))
    try:
        # true and false can name two classes, but not a value on another scale.
        truth = isinstance(value, bool) and len(labels) != 2
        number = float("nan" if truth else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not labels and np.isfinite(number):
        return number
    if number in range(len(labels)):
        return number
    names = ", ".join(labels if len(labels) <= 12 else (*labels[:3], "...", labels[-1]))
    allowed = f"{names} (ids 0 to {len(labels) - 1})"
    raise UserError(f"{where}: label {shown(value)}: expected {allowed if labels else 'a number'}")
