"""`TokenTask`: a tag for each word of a text, such as the names in it; rows as `TaggedWords`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from goat_jax.data.pipeline.overlap import mark_of
from goat_jax.data.sources.read import Row, read_source
from goat_jax.data.sources.text_fields import shown
from goat_jax.data.tasks.columns import check_scoring, read_column
from goat_jax.data.tasks.splits import (
    DEFAULT_SPLITS,
    check_held_out,
    check_limits,
    chosen_rows,
    source_of,
)
from goat_jax.errors import UserError
from goat_jax.validation.fields import check_fields

ACCURACY = "word_accuracy"
ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall", ACCURACY)
"""Metrics of tags that mark entities: B-TYPE at the first word, I-TYPE at the others, O outside."""


@dataclass(frozen=True)
class TokenTask:
    """Classification of every word of a text: names (NER), parts of speech, ...

    Attributes:
      HEAD: the head that a model needs, as `head` of its config names it.
      name: the task's name in reports.
      train: the source of the training rows (`goat_jax.data.sources.read`).
      evaluation: the source of the evaluation rows.
      labels: the tags in the order of their numbers.
      tokens: the name of the column with a list of words.
      tags: the name of the column with a list of tags, or of their numbers.
      metrics: "entity_f1", "entity_precision" and "entity_recall", for tags B-TYPE, I-TYPE and O,
        and "word_accuracy"; the first one is the primary metric.
      data_dir: TFDS's folder, the package cache, or the folder that relative paths start from.
      train_limit: the largest number of training rows, evenly spaced over the source.
      evaluation_limit: the largest number of evaluation rows, evenly spaced over the source.
      held_out: the number of rows of the training source that are held out for evaluation, evenly
        spaced; if above 0, `evaluation` must be the same source.

    Raises UserError if the fields do not fit together.

    >>> task = TokenTask("names", "a.jsonl", "b.jsonl", ("O", "B-PER", "I-PER"))
    >>> task.tags_of({"tokens": ["Ada", "spoke"], "ner_tags": ["B-PER", "O"]}, "row 1")
    [1, 0]
    """

    HEAD: ClassVar[str] = "tokens"

    name: str
    train: str
    evaluation: str
    labels: tuple[str, ...]
    tokens: str = "tokens"
    tags: str = "ner_tags"
    metrics: tuple[str, ...] = ENTITY_METRICS
    data_dir: str | None = None
    train_limit: int | None = None
    evaluation_limit: int | None = None
    held_out: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "task.")
        if not self.labels:
            raise UserError(f"task {self.name}: no labels given: name the tags")
        known = ENTITY_METRICS if are_entities(self.labels) else (ACCURACY,)
        check_scoring(self.name, self.labels, self.metrics, known=known)
        check_limits(self.name, self.train_limit, self.evaluation_limit)
        check_held_out(self)

    def words_of(self, row: Row, where: str) -> list[str]:
        """Reads a row's words; raises UserError unless they are a list of texts, one or more."""
        words = read_list(row, self.tokens, where)
        if not words or not all(isinstance(word, str) for word in words):
            raise UserError(
                f"{where}: column {self.tokens!r} holds {shown(words)}: expected a list of words"
            )
        return words

    def tags_of(self, row: Row, where: str) -> list[int]:
        """Reads the numbers of a row's tags; raises UserError if they do not fit the words."""
        tags, words = read_list(row, self.tags, where), self.words_of(row, where)
        if len(tags) != len(words):
            raise UserError(f"{where}: {len(tags)} tags for {len(words)} words: give one for each")
        return [self._number(tag, where) for tag in tags]

    def _number(self, tag: Any, where: str) -> int:
        if tag in self.labels:
            return self.labels.index(tag)
        if isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(self.labels):
            return tag
        raise UserError(
            f"{where}: tag {shown(tag)}: expected {', '.join(self.labels)} (numbers 0 to "
            f"{len(self.labels) - 1})"
        )


def are_entities(labels: Sequence[str]) -> bool:
    """True if tags mark entities: O, B-TYPE, I-TYPE, and in BIOES also E-TYPE and S-TYPE.

    >>> are_entities(("O", "B-PER", "I-PER")), are_entities(("NOUN", "VERB"))
    (True, False)
    """
    return any(label[:2] == "B-" for label in labels) and all(
        label == "O" or label[:2] in ("B-", "I-", "E-", "S-") for label in labels
    )


def read_list(row: Row, column: str, where: str) -> list[Any]:
    """Returns a column's value, a list; raises UserError for anything else."""
    value = read_column(row, column, where)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: column {column!r} holds {shown(value)}: expected a list")
    return list(value)


@dataclass(frozen=True, eq=False)
class TaggedWords:
    """Words and tags of N rows.

    Attributes:
      words: the words of each row.
      tags: the number of each word's tag; empty lists for rows to predict from.
      marks: a digest of each row that identifies it (`goat_jax.data.pipeline.overlap`).
    """

    words: list[list[str]]
    tags: list[list[int]] = field(repr=False)
    marks: tuple[bytes, ...] = field(default=(), repr=False)


def token_rows(task: TokenTask, split: str) -> list[tuple[Row, str]]:
    """Reads the rows of a split, each with its place for error messages."""
    source, limit = source_of(task, split)
    rows = read_source(source, DEFAULT_SPLITS[split], task.data_dir)
    if not len(rows):
        raise UserError(f"{source}: no rows")
    numbers = chosen_rows(task, split, len(rows), limit)
    return [(rows[number], f"{source}: row {number + 1}") for number in numbers]


def load_words(task: TokenTask, split: str) -> TaggedWords:
    """Loads the rows of a task's `train` or `evaluation` source and checks each of them."""
    rows = token_rows(task, split)
    words = [task.words_of(row, where) for row, where in rows]
    tags = [task.tags_of(row, where) for row, where in rows]
    return TaggedWords(words, tags, tuple(mark_of(tuple(each)) for each in words))


def unlabeled_words(task: TokenTask, rows: Sequence[Row], source: str) -> TaggedWords:
    """Returns rows to predict from, without tags."""
    places = (f"{source}: row {number}" for number in range(1, len(rows) + 1))
    words = [task.words_of(row, where) for row, where in zip(rows, places, strict=True)]
    return TaggedWords(words, [[] for _ in words])
