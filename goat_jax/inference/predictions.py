"""`Predictions`: labels, values or answers for some rows, and the columns they have in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from goat_jax.data.sources.formats import Row
from goat_jax.errors import UserError
from goat_jax.text_tables import html_table, render_table

PREDICTION, PROBABILITY = "prediction", "probability_{}"
"""Names of the columns with the prediction and with the probability of a class."""

LONGEST_TABLE, LONGEST_CELL = 20, 60
"""Most rows of a printed table, and most characters in one of its cells."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The predictions for N rows, in their order; printed as a table.

    Attributes:
        rows: the rows, N dictionaries.
        kind: "label", "value", "tags" or "answer".
        predicted: the N labels (text, or lists of it for several labels a row), values (float32),
            lists of tags, or answers (text).
        classes: the names of the C classes; empty without classes.
        probabilities: the probability of each class, (N, C) float32.

    >>> rows, shares = [{"text": "warm and sharp"}], np.array([[0.25, 0.75]], np.float32)
    >>> found = Predictions(rows, "label", np.array(["good"]), ("bad", "good"), shares)
    >>> found
    text            label  probability
    --------------  -----  -----------
    warm and sharp  good          0.75
    >>> found.labels.tolist()
    ['good']
    """

    rows: Sequence[Row]
    kind: str
    predicted: np.ndarray
    classes: tuple[str, ...] = ()
    probabilities: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 0), np.float32)
    )

    @property
    def labels(self) -> np.ndarray:
        """The predicted class names (N,); a `UserError` if the task has no classes."""
        return self._as("label")

    @property
    def values(self) -> np.ndarray:
        """The predicted numbers (N,) float32; a `UserError` unless the task is a regression."""
        return self._as("value")

    @property
    def tags(self) -> np.ndarray:
        """The tags of each row's words (N,), lists; a `UserError` unless the task tags words."""
        return self._as("tags")

    @property
    def answers(self) -> np.ndarray:
        """The generated answers (N,); a `UserError` unless the model is a language model."""
        return self._as("answer")

    def _as(self, kind: str) -> np.ndarray:
        if kind != self.kind:
            ours, other = self.kind.rstrip("s"), kind.rstrip("s")
            raise UserError(f"no {other}s here: the run predicts {ours}s")
        return self.predicted

    def __len__(self) -> int:
        return len(self.predicted)

    def __repr__(self) -> str:
        return "\n".join([render_table(*self._table()), *self._more()])

    def _repr_html_(self) -> str:
        """Returns the table in HTML, which a notebook shows."""
        return html_table(*self._table()) + "".join(self._more())

    def _table(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the headers and the first rows of the printed table."""
        shown = min(len(self), LONGEST_TABLE)
        columns = list(dict.fromkeys(name for row in self.rows[:shown] for name in row))
        headers = [*columns, self.kind, *(["probability"] if self.classes else [])]
        table = [
            [
                *(_short(self.rows[place].get(name)) for name in columns),
                _short(self.predicted[place]),
                *([self.probabilities[place].max()] if self.classes else []),
            ]
            for place in range(shown)
        ]
        return headers, table

    def _more(self) -> list[str]:
        """Returns the line that counts the rows which are not shown, if there are any."""
        left = len(self) - LONGEST_TABLE
        return [f"... {left:,} more rows"] if left > 0 else []

    def results(self) -> list[list[Any]]:
        """Returns each row's prediction and probabilities, in the order of `result_columns`."""
        shares = self.probabilities.tolist() if self.classes else [[]] * len(self)
        return [
            [one, *probabilities]
            for one, probabilities in zip(self.predicted.tolist(), shares, strict=True)
        ]


def _short(value: object) -> object:
    if isinstance(value, bytes | np.ndarray):
        return f"({type(value).__name__})"
    if isinstance(value, np.floating | int | float) or value is None:
        return value
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 3] + "..."


def result_columns(classes: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Returns the names of the result columns; one that is taken gets underscores at its end.

    Args:
        classes: the names of the classes.
        taken: the columns of the rows.

    >>> result_columns(("bad", "good"), ("text", "prediction"))
    ['prediction_', 'probability_bad', 'probability_good']
    """
    known, names = set(taken), []
    for name in (PREDICTION, *map(PROBABILITY.format, classes)):
        while name in known:
            name += "_"
        known.add(name)
        names.append(name)
    return names
