"""`MultiLabelTask`: classification of texts that may have several labels, or none."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from goat_jax.data.metrics import MULTI_LABEL_METRICS
from goat_jax.data.sources.formats import Row
from goat_jax.data.sources.text_fields import shown
from goat_jax.data.tasks.columns import read_column
from goat_jax.data.tasks.text import TextTask
from goat_jax.errors import UserError

YES_AND_NO = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class MultiLabelTask(TextTask):
    """Classification of a sentence or of a pair of sentences, with any number of labels a row.

    Attributes:
      label: the name of the label column: a list of labels, or text that `separator` divides;
        empty if every label is a column of its own, with 1 or 0.
      labels: the names of all labels.
      separator: the text between two labels of a row.

    >>> task = MultiLabelTask("news", "a", "b", ("text",), "topics", ("law", "art", "war"),
    ...                       MULTI_LABEL_METRICS)
    >>> task.label_of({"topics": "war, law"}, "row 1")
    (1.0, 0.0, 1.0)
    """

    separator: str = ","

    def __post_init__(self) -> None:
        for field in ("labels", "separator"):
            if not getattr(self, field):
                raise UserError(
                    f"task {self.name}: no {field} given: rows with several labels need it"
                )
        super().__post_init__()

    def known_metrics(self) -> Sequence[str]:
        return MULTI_LABEL_METRICS

    def label_of(self, row: Row, where: str) -> tuple[float, ...]:
        """Reads a row's labels: 1 for each that it has, else 0."""
        if not self.label:
            return tuple(_yes_or_no(row, name, where) for name in self.labels)
        names = names_of(read_column(row, self.label, where), self.separator)
        unknown = [name for name in names if name not in self.labels]
        if unknown:
            raise UserError(
                f"{where}: label {shown(unknown[0])} in column {self.label!r}: expected some of "
                f"{', '.join(self.labels)}"
            )
        return tuple(float(name in names) for name in self.labels)

    def label_array(self, labels: Sequence[Any]) -> np.ndarray:
        """Returns the labels of several rows as a batch has them: float32 [N, C]."""
        return np.asarray(labels, np.float32)

    def blank_labels(self, count: int) -> np.ndarray:
        return np.zeros((count, len(self.labels)), np.float32)

    def label_name(self, label: Any) -> list[str]:
        return [name for name, has in zip(self.labels, label, strict=True) if has]


def names_of(value: object, separator: str) -> list[str]:
    """Returns the labels of a cell: of a list, also in JSON, or of a text that is separated.

    >>> names_of("law; art;", ";"), names_of([3, "law"], ";"), names_of('["a, b"]', ",")
    (['law', 'art'], ['3', 'law'], ['a, b'])
    """
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list | tuple | np.ndarray):
        return [str(each) for each in value]
    parts = (part.strip() for part in str(value).split(separator))
    return [part for part in parts if part]


def _yes_or_no(row: Row, name: str, where: str) -> float:
    value = read_column(row, name, where)
    word = str(value).strip().lower()
    if word not in YES_AND_NO:
        raise UserError(f"{where}: column {name!r} holds {shown(value)}: expected 0 or 1")
    return float(YES_AND_NO[word])
