"""What a language-modelling task is: rows in any of the usual formats, as pieces of text.

A row becomes pieces of one text, each learnt or only read: the prompt is read, the completion is
learnt. `goat_jax.data.pipeline.encoding` makes tokens of the whole.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from goat_jax.data.pipeline.encoding import Piece
from goat_jax.data.sources.read import Row, read_source
from goat_jax.data.sources.text_fields import check_text, read_text
from goat_jax.data.tasks.conversations import chat_spans, read_conversation
from goat_jax.data.tasks.filters import SELECTIONS
from goat_jax.data.tasks.text import (
    DEFAULT_SPLITS,
    check_limits,
    read_tasks,
    source_of,
    spaced,
)
from goat_jax.errors import UserError, nearest
from goat_jax.validation.fields import check_fields

LANGUAGE_METRICS = ("perplexity", "token_accuracy")


@dataclasses.dataclass(frozen=True)
class LanguageTask:
    """Language modelling on the rows of files, TFDS sets or packages.

    Attributes:
      name: how reports call it.
      train: the source of the training rows (`goat_jax.data.sources.read`).
      evaluation: the source of the evaluation rows.
      format: a key of `FORMATS`.
      prompt: a template with a row's columns in braces, such as
        ``"Question: {question}\\nAnswer:"``; only for the format "template". In
        ``{query|question}`` the first of the columns that a row has is put in.
      completion: the template of what is learnt, likewise.
      learn: "completion", or "all" to learn the prompts too.
      selection: a key of `SELECTIONS`: which rows of the source are taken.
      held_out: so many rows of the training source, evenly spaced, are not learnt but are the
        evaluation rows; then `evaluation` is the same source.
      packing: several texts share a row of `max_length` tokens, without seeing each other.
      metrics: names from `LANGUAGE_METRICS`, the first decides.
      data_dir: TFDS's folder, the package cache, or where relative paths start.
      train_limit: at most so many training rows, evenly spaced over the source.
      evaluation_limit: at most so many evaluation rows, likewise.
      task_id: the column with the number of a row's task (from 0), where the rows are of several
        tasks and the method weighs experts by task (MOELoRA).
      task_type: the column with the kind of a row's task, 0 or 1, for methods that go by it
        (LoRAMoE). A kind belongs to a whole row of tokens, so it needs ``packing=False``.

    >>> LanguageTask("notes", "a.jsonl", "b.jsonl", format="txt")
    Traceback (most recent call last):
    goat_jax.errors.UserError: task notes: unknown format 'txt' (did you mean 'text'?): use one \
of prompt_completion, messages, alpaca, text, template
    """

    name: str
    train: str
    evaluation: str
    format: str = "prompt_completion"
    prompt: str = ""
    completion: str = ""
    learn: str = "completion"
    selection: str = "all"
    held_out: int = 0
    packing: bool = True
    metrics: tuple[str, ...] = LANGUAGE_METRICS
    data_dir: str | None = None
    train_limit: int | None = None
    evaluation_limit: int | None = None
    task_id: str | None = None
    task_type: str | None = None

    def __post_init__(self) -> None:
        def fail(what: str) -> UserError:
            return UserError(f"task {self.name}: {what}")

        check_fields(self, "task.")
        if self.format not in FORMATS:
            hint = nearest(self.format, FORMATS)
            known = ", ".join(FORMATS)
            raise fail(f"unknown format {self.format!r}{hint}: use one of {known}")
        if self.learn not in ("completion", "all"):
            raise fail(f"learn {self.learn!r}: use completion or all")
        if self.selection not in SELECTIONS:
            hint = nearest(self.selection, SELECTIONS)
            known = ", ".join(SELECTIONS)
            raise fail(f"unknown selection {self.selection!r}{hint}: use one of {known}")
        if self.held_out < 0 or (self.held_out and self.evaluation != self.train):
            raise fail(
                f"held_out {self.held_out}: 0, or how many rows of the training source to hold out"
                " with evaluation the same source as train"
            )
        if (self.format == "template") != bool(self.completion):
            raise fail("the format template, and only it, needs a completion template")
        for metric in self.metrics:
            if metric not in LANGUAGE_METRICS:
                known = ", ".join(LANGUAGE_METRICS)
                raise fail(f"unknown metric {metric!r}: language modelling has {known}")
        if self.task_type is not None and self.packing:
            raise fail("packed texts share a row, which has one task_type: packing=False")
        if not self.metrics:
            raise fail(f"no metric given: use {', '.join(LANGUAGE_METRICS)}")
        check_limits(self.name, self.train_limit, self.evaluation_limit)


class Text(NamedTuple):
    """A row as text.

    Attributes:
      pieces: in their order.
      tasks: "task_ids", "task_types" -> number, where the task has these columns.
    """

    pieces: list[Piece]
    tasks: dict[str, int]


def load_pieces(task: LanguageTask, split: str, tokenizer: Any) -> list[Text]:
    """The rows of a task's `train` or `evaluation` source as pieces.

    Args:
      tokenizer: its chat template turns messages into text.

    Raises UserError naming source and row number (from 1) for a row that does not have the format.
    """
    source = source_of(task, split)[0]
    texts = []
    for index, row in load_rows(task, split):
        try:
            pieces = FORMATS[task.format](row, task, tokenizer)
        except UserError as error:
            raise UserError(f"{source}: row {index + 1}: {error}") from None
        texts.append(Text(pieces, read_tasks(row, task, f"{source}: row {index + 1}")))
    return texts


def load_rows(task: LanguageTask, split: str) -> list[tuple[int, Row]]:
    """The rows that a split takes of its source, each with its place there (from 0).

    Raises UserError for a source without rows, or one whose rows the selection does not know.
    """
    source, limit = source_of(task, split)
    rows = read_source(source, DEFAULT_SPLITS[split], task.data_dir)
    if not rows:
        raise UserError(f"{source}: no rows")
    kept = _selected(rows, task, source)
    return [kept[place] for place in chosen_rows(task, split, len(kept), limit)]


def _selected(rows: list[Row], task: LanguageTask, source: str) -> list[tuple[int, Row]]:
    """The rows that the task's selection keeps, each with its place in the source."""
    kept = []
    for index, row in enumerate(rows):
        try:
            chosen = SELECTIONS[task.selection](row)
        except UserError as error:
            raise UserError(f"{source}: row {index + 1}: {error}") from None
        if chosen is not None:
            kept.append((index, chosen))
    if not kept:
        raise UserError(f"{source}: the selection {task.selection} keeps none of {len(rows)} rows")
    return kept


def chosen_rows(task: LanguageTask, split: str, count: int, limit: int | None) -> Sequence[int]:
    """Which of a source's rows a split takes.

    >>> chosen_rows(LanguageTask("notes", "a", "a", held_out=2), "train", 6, None)
    [1, 2, 4, 5]
    """
    if not task.held_out:
        return spaced(count, limit)
    if task.held_out >= count:
        raise UserError(
            f"task {task.name}: {task.held_out} rows held out of {count} leave none to learn"
        )
    held = spaced(count, task.held_out)
    rows = held if split == "evaluation" else sorted(set(range(count)) - set(held))
    return [rows[place] for place in spaced(len(rows), limit)]


def _prompt_completion(row: Row, task: LanguageTask, tokenizer: Any) -> list[Piece]:
    del tokenizer
    return _asked_and_learnt(task, read_text(row, "prompt"), read_text(row, "completion"))


def _asked_and_learnt(task: LanguageTask, prompt: str, completion: str) -> list[Piece]:
    return [Piece(prompt, task.learn == "all"), Piece(completion, True)]


def _plain_text(row: Row, task: LanguageTask, tokenizer: Any) -> list[Piece]:
    del task, tokenizer
    return [Piece(read_text(row, "text"), True)]


def _alpaca(row: Row, task: LanguageTask, tokenizer: Any) -> list[Piece]:
    """Columns instruction, input (may be empty, null or missing) and output."""
    del tokenizer
    given = read_text(row, "input", default="")
    parts = [("Instruction", read_text(row, "instruction"))]
    parts += [("Input", given)] if given else []
    prompt = "".join(f"### {title}:\n{text}\n\n" for title, text in parts) + "### Response:\n"
    return _asked_and_learnt(task, prompt, read_text(row, "output"))


def _template(row: Row, task: LanguageTask, tokenizer: Any) -> list[Piece]:
    del tokenizer
    return _asked_and_learnt(task, fill(task.prompt, row), fill(task.completion, row))


def fill(template: str, row: Row) -> str:
    """A template with a row's columns put in: text, or whole numbers.

    >>> fill("Question: {query|question}", {"question": "why?"})
    'Question: why?'
    """
    try:
        return _Filler().vformat(template, (), row)
    except UserError:
        raise
    except (LookupError, ValueError, AttributeError, TypeError, MemoryError) as error:
        raise UserError(
            f"template {template!r} does not fit ({error}); the row has {', '.join(map(str, row))}"
        ) from None


class _Filler(string.Formatter):
    """Fills a template with checked values; ``a|b`` is column a, or b where there is no a."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        for name in str(key).split("|"):
            if kwargs.get(name) is not None:
                return kwargs[name]
        raise KeyError(key)

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # A column's own name may have dots and brackets, which else reach into its value.
        whole = field_name in kwargs
        value, key = (
            (kwargs[field_name], field_name)
            if whole
            else super().get_field(field_name, args, kwargs)
        )
        check_text(value, f"column {field_name!r}", whole_numbers=True)
        return value, key


def _messages(row: Row, task: LanguageTask, tokenizer: Any) -> list[Piece]:
    """A conversation; what the assistant says is learnt, with the mark of its end."""
    text, learnt, skipped = chat_spans(tokenizer, read_conversation(row))
    kinds = dict.fromkeys(learnt, True) | dict.fromkeys(skipped, False)
    places = [0, *(place for span in sorted(kinds) for place in span), len(text)]
    return [
        Piece(text[start:end], kinds.get((start, end), task.learn == "all"))
        for start, end in pairwise(places)
        if start < end
    ]


FORMATS: dict[str, Callable[[Row, LanguageTask, Any], list[Piece]]] = {
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "alpaca": _alpaca,
    "text": _plain_text,
    "template": _template,
}
"""Format of a row -> its pieces."""

CHAT_FORMATS = frozenset({"messages"})
"""Formats whose text a chat template writes, its beginning and its end included; the others get
the tokenizer's."""
