"""Makes a task of labels from a file alone: one label a row, several, or a tag for each word.

For a language model it decides first whether the rows have labels or texts to continue.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from goat_jax.data.metrics import MULTI_LABEL_METRICS
from goat_jax.data.sources.formats import Row
from goat_jax.data.sources.read import read_source
from goat_jax.data.tasks.guess import (
    ANSWERS,
    CHATS,
    LABEL_NAMES,
    NO_CONTENT,
    Data,
    Guess,
    by_name,
    check_columns,
    guess_language,
    guess_text,
    label_column,
    length,
    longest,
    shown,
    small_names,
    text_columns,
    values_of,
    words,
)
from goat_jax.data.tasks.multi_label import MultiLabelTask, names_of
from goat_jax.data.tasks.tokens import ACCURACY, ENTITY_METRICS, TokenTask, are_entities, read_list

WORD_NAMES = ("tokens", "words")
TAG_NAMES = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags", "ner")
"""Columns with a list of words, and with a list of their tags."""

LISTS = (list, tuple, np.ndarray)

TEXT_FIELDS = {"format", "prompt", "completion"}
LABEL_FIELDS = {"label", "labels", "text", "separator", "tokens", "tags"}
"""Fields of a task of texts, and of labels."""


def guess_labels(data: Data) -> Guess:
    """Makes a task of texts with a label, with several labels, or with a tag for each word.

    Raises UserError if no column looks like text, or none like a label.
    """
    rows = read_source(data.source, "train")
    columns = _tag_columns(data, rows)
    if columns is not None:
        return _guess_tags(data, rows, *columns)
    several = _several_labels(data, rows)
    return guess_text(data) if several is None else _guess_several(data, rows, *several)


def guess_texts(data: Data) -> Guess:
    """Makes a language model's task: of labels or tags if the data are that, else of texts.

    Rows with a chat, or with a prompt and its answer, are texts. Others have labels if a column is
    named like a label, beside their text.
    """
    rows = read_source(data.source, "train")
    if not _have_labels(data, rows):
        return guess_language(data)
    guess = guess_labels(data)
    line = "a head for labels on the language model; train it on the texts with --task.format text"
    return dataclasses.replace(guess, lines=(line, *guess.lines))


def _have_labels(data: Data, rows: Sequence[Row]) -> bool:
    if TEXT_FIELDS & set(data.given):
        return False
    if LABEL_FIELDS & set(data.given) or _tag_columns(data, rows) is not None:
        return True
    columns = set(small_names(rows))
    dialogues = [set(names) for names, _ in CHATS if names != ("text",)] + list(map(set, ANSWERS))
    if any(names <= columns for names in dialogues):
        return False
    label = _named_label(rows)
    return label is not None and longest(rows, (label,)) is not None


def _named_label(rows: Sequence[Row]) -> str | None:
    return by_name([name for name in rows[0] if not words(name) & NO_CONTENT], LABEL_NAMES)


def _several_labels(data: Data, rows: Sequence[Row]) -> tuple[str, tuple[str, ...]] | None:
    """Returns the label column and the labels of rows with several; None for one label a row.

    The column holds lists, or text that a given separator divides. Without a label column, two or
    more columns of 0 and 1 are the labels, and the column's name is empty.
    """
    label, separator = data.given.get("label") or _named_label(rows), data.given.get("separator")
    if label is None and separator is None:
        few = tuple(
            name for name in rows[0] if {str(v) for v in values_of(rows, name)} == {"0", "1"}
        )
        return ("", data.given.get("labels", few)) if len(few) > 1 else None
    label = label or label_column(data.source, rows)
    cells = values_of(rows, label)
    if separator is None and not (cells and all(isinstance(cell, LISTS) for cell in cells)):
        return None
    found = {name for cell in cells for name in names_of(cell, separator or ",")}
    return label, data.given.get("labels", tuple(sorted(found)))


def _guess_several(
    data: Data, rows: Sequence[Row], label: str, labels: tuple[str, ...]
) -> Guess[MultiLabelTask]:
    text = tuple(data.given.get("text") or text_columns(data.source, rows, label))
    check_columns(data.source, rows, *([label] if label else labels), *text)
    where, count, held = data.held_out_part(len(rows), "the same share of every set of labels")
    if "separator" in data.given:
        where["separator"] = data.given["separator"]
    task = MultiLabelTask(
        data.name,
        data.source,
        text=text,
        label=label,
        labels=labels,
        metrics=MULTI_LABEL_METRICS,
        **where,
    )
    place = f"label column: {label}" if label else "a column of 0 and 1 for each label"
    lines = (
        f"text column{'s' * (len(text) > 1)}: {' and '.join(text)}; say otherwise with --task.text",
        f"{place} ({len(labels)} labels, several a row: {shown(labels)}); say otherwise with "
        "--task.label",
        held,
    )
    return Guess(task, count, length(rows, text), lines)


def _tag_columns(data: Data, rows: Sequence[Row]) -> tuple[str, str] | None:
    """Returns the columns with lists of words and of their tags; None if the rows have none."""
    lists = [name for name, value in rows[0].items() if isinstance(value, LISTS)]
    tokens = data.given.get("tokens") or next((name for name in WORD_NAMES if name in lists), None)
    tags = data.given.get("tags") or next((name for name in TAG_NAMES if name in lists), None)
    return None if tokens is None or tags is None else (tokens, tags)


def _guess_tags(data: Data, rows: Sequence[Row], tokens: str, tags: str) -> Guess[TokenTask]:
    check_columns(data.source, rows, tokens, tags)
    where, count, held = data.held_out_part(len(rows), "evenly spaced")
    found = {
        tag
        for number, row in enumerate(rows, start=1)
        for tag in read_list(row, tags, f"{data.source}: row {number}")
    }
    labels = tuple(data.given.get("labels") or _tag_names(found))
    task = TokenTask(
        data.name,
        data.source,
        labels=labels,
        tokens=tokens,
        tags=tags,
        metrics=ENTITY_METRICS if are_entities(labels) else (ACCURACY,),
        **where,
    )
    line = (
        f"words: {tokens}, tags: {tags} ({len(labels)}: {shown(labels)}); say otherwise with "
        "--task.tokens, --task.tags, --task.labels"
    )
    return Guess(task, count, length(rows, (tokens,)), (line, held))


def _tag_names(found: set[Any]) -> list[str]:
    """Returns the names of tags in their order: O first, then by type; numbers by themselves.

    >>> _tag_names({"I-PER", "B-LOC", "O", "B-PER"}), _tag_names({0, 2})
    (['O', 'B-LOC', 'B-PER', 'I-PER'], ['0', '1', '2'])
    """
    if all(isinstance(tag, int) for tag in found):
        return list(map(str, range(max(found) + 1)))
    return sorted(
        map(str, found), key=lambda tag: (tag != "O", tag.partition("-")[2], tag.partition("-")[0])
    )
