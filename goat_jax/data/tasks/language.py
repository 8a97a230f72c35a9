"""`LanguageTask`: language modeling on rows in the common formats, split into pieces of text.

A row becomes the pieces of one text. Completion pieces are trained on; prompt pieces are only
context. `goat_jax.data.pipeline.encoding` tokenizes the text in one piece.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from goat_jax.data.pipeline.encoding import Piece
from goat_jax.data.sources.read import Row, read_source
from goat_jax.data.sources.text_fields import check_text, read_text
from goat_jax.data.tasks.columns import read_tasks
from goat_jax.data.tasks.filters import SELECTIONS
from goat_jax.data.tasks.formats.conversations import (
    ASSISTANT,
    chat_ids,
    chat_spans,
    read_conversation,
)
from goat_jax.data.tasks.splits import (
    DEFAULT_SPLITS,
    check_held_out,
    check_limits,
    chosen_rows,
    source_of,
)
from goat_jax.errors import UserError, nearest
from goat_jax.typing import Tokenizer
from goat_jax.validation.fields import check_fields

PERPLEXITY, TOKEN_ACCURACY = LANGUAGE_METRICS = ("perplexity", "token_accuracy")


@dataclasses.dataclass(frozen=True)
class LanguageTask:
    """Language modeling on the rows of files, TFDS data sets or packages.

    Attributes:
      name: the task's name in reports.
      train: the source of the training rows (`goat_jax.data.sources.read`).
      evaluation: the source of the evaluation rows.
      format: a key of `FORMATS`.
      prompt: the template of the prompt, with a row's columns in braces, such as
        ``"Question: {question}\\nAnswer:"``; only for the format "template". ``{query|question}``
        inserts the first of these columns that a row has.
      completion: the template of the text to train on; only for the format "template".
      loss_on: the text that counts in the loss: "completion", or "all" for the prompt as well.
      selection: a key of `SELECTIONS`, the filter that selects rows of the source.
      held_out: the number of rows of the training source, evenly spaced, that are held out for
        evaluation; if above 0, `evaluation` must be the same source.
      packing: whether several texts share a row of `max_length` tokens, without attending to each
        other.
      metrics: names from `METRICS`; the first one is the primary metric.
      data_dir: TFDS's folder, the package cache, or the folder that relative paths start from.
      train_limit: the largest number of training rows, evenly spaced over the source.
      evaluation_limit: the largest number of evaluation rows, evenly spaced over the source.
      task_id: the column with the number of a row's task (from 0), for rows of several tasks and
        methods that weight experts by task (MOELoRA).
      task_type: the column with the type of a row's task, 0 or 1, for methods that use it
        (LoRAMoE). The type applies to a full row of tokens, so it needs ``packing=False``.

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
    loss_on: str = "completion"
    selection: str = "all"
    held_out: int = 0
    packing: bool = True
    metrics: tuple[str, ...] = LANGUAGE_METRICS
    data_dir: str | None = None
    train_limit: int | None = None
    evaluation_limit: int | None = None
    task_id: str | None = None
    task_type: str | None = None
    METRICS: ClassVar[tuple[str, ...]] = LANGUAGE_METRICS

    def __post_init__(self) -> None:
        def fail(what: str) -> UserError:
            return UserError(f"task {self.name}: {what}")

        check_fields(self, "task.")
        if self.format not in FORMATS:
            hint = nearest(self.format, FORMATS)
            known = ", ".join(FORMATS)
            raise fail(f"unknown format {self.format!r}{hint}: use one of {known}")
        if self.loss_on not in ("completion", "all"):
            raise fail(f"loss_on {self.loss_on!r}: use completion or all")
        if self.selection not in SELECTIONS:
            hint = nearest(self.selection, SELECTIONS)
            known = ", ".join(SELECTIONS)
            raise fail(f"unknown selection {self.selection!r}{hint}: use one of {known}")
        if (self.format == "template") != bool(self.completion):
            raise fail("a completion template is needed for format template, and only for it")
        for metric in self.metrics:
            if metric not in self.METRICS:
                known = ", ".join(self.METRICS)
                raise fail(f"unknown metric {metric!r}: use one of {known}")
        if self.task_type is not None and self.packing:
            raise fail("packed texts share a row, which has one task_type: set packing=False")
        if not self.metrics:
            raise fail(f"no metric is given: use {', '.join(self.METRICS)}")
        check_limits(self.name, self.train_limit, self.evaluation_limit)
        check_held_out(self)


class Text(NamedTuple):
    """A row's text.

    Attributes:
      pieces: the pieces of the text, in order.
      tasks: "task_ids", "task_types" -> number, if the task has these columns.
    """

    pieces: list[Piece]
    tasks: dict[str, int]


def load_pieces(task: LanguageTask, split: str, tokenizer: Tokenizer) -> list[Text]:
    """Loads the rows of a task's `train` or `evaluation` source as pieces of text.

    Args:
      task: the task.
      split: "train" or "evaluation".
      tokenizer: the tokenizer, whose chat template turns messages into text.

    Raises UserError naming source and row number (from 1) for a row not in the task's format.
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
    """Loads the rows of a split, each with its index in the source (from 0).

    Raises UserError for a source without rows, or with rows that the selection cannot read.
    """
    source, limit = source_of(task, split)
    rows = read_source(source, DEFAULT_SPLITS[split], task.data_dir)
    if not rows:
        raise UserError(f"{source}: no rows")
    kept = _selected(rows, task, source)
    return [kept[place] for place in chosen_rows(task, split, len(kept), limit)]


def _selected(rows: list[Row], task: LanguageTask, source: str) -> list[tuple[int, Row]]:
    """Returns the rows that the task's selection keeps, each with its index in the source."""
    kept = []
    for index, row in enumerate(rows):
        try:
            chosen = SELECTIONS[task.selection](row)
        except UserError as error:
            raise UserError(f"{source}: row {index + 1}: {error}") from None
        if chosen is not None:
            kept.append((index, chosen))
    if not kept:
        raise UserError(f"{source}: task.selection {task.selection} keeps none of {len(rows)} rows")
    return kept


def _prompt_completion(row: Row, task: LanguageTask, tokenizer: Tokenizer) -> list[Piece]:
    del tokenizer
    return _prompt_and_completion(task, read_text(row, "prompt"), read_text(row, "completion"))


def _prompt_and_completion(task: LanguageTask, prompt: str, completion: str) -> list[Piece]:
    return [Piece(prompt, task.loss_on == "all"), Piece(completion, True)]


def _plain_text(row: Row, task: LanguageTask, tokenizer: Tokenizer) -> list[Piece]:
    del task, tokenizer
    return [Piece(read_text(row, "text"), True)]


def _alpaca(row: Row, task: LanguageTask, tokenizer: Tokenizer) -> list[Piece]:
    """Reads the columns instruction, input (may be empty, null or missing) and output."""
    del tokenizer
    return _prompt_and_completion(task, _alpaca_prompt(row), read_text(row, "output"))


def _alpaca_prompt(row: Row) -> str:
    context = read_text(row, "input", default="")
    parts = [("Instruction", read_text(row, "instruction"))]
    parts += [("Input", context)] if context else []
    return "".join(f"### {title}:\n{text}\n\n" for title, text in parts) + "### Response:\n"


def _template(row: Row, task: LanguageTask, tokenizer: Tokenizer) -> list[Piece]:
    del tokenizer
    return _prompt_and_completion(task, fill(task.prompt, row), fill(task.completion, row))


def fill(template: str, row: Row) -> str:
    """Fills a template with a row's columns, which must hold text or integers.

    Raises UserError if the template does not fit the row.

    >>> fill("Question: {query|question}", {"question": "why?"})
    'Question: why?'
    """
    try:
        return _Filler().vformat(template, (), row)
    except UserError:
        raise
    except (LookupError, ValueError, AttributeError, TypeError, MemoryError) as error:
        raise UserError(
            f"template {template!r} does not fit ({error}): the row has {', '.join(map(str, row))}"
        ) from None


class _Filler(string.Formatter):
    """Formatter that checks values; ``a|b`` inserts column a, or b if there is no a."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        for name in str(key).split("|"):
            if kwargs.get(name) is not None:
                return kwargs[name]
        raise KeyError(key)

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # A column name may contain dots and brackets, which str.format would take for attributes.
        whole = field_name in kwargs
        value, key = (
            (kwargs[field_name], field_name)
            if whole
            else super().get_field(field_name, args, kwargs)
        )
        check_text(value, f"column {field_name!r}", whole_numbers=True)
        return value, key


def _messages(row: Row, task: LanguageTask, tokenizer: Tokenizer) -> list[Piece]:
    """Reads a conversation; the assistant's turns, with their end marker, are trained on."""
    text, trained, skipped = chat_spans(tokenizer, read_conversation(row))
    kinds = dict.fromkeys(trained, True) | dict.fromkeys(skipped, False)
    places = [0, *(place for span in sorted(kinds) for place in span), len(text)]
    return [
        Piece(text[start:end], kinds.get((start, end), task.loss_on == "all"))
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
"""Format -> function that splits a row into pieces."""


def _chat_prompt(row: Row, tokenizer: Tokenizer) -> list[int]:
    """Returns a conversation up to its last answer, if it ends in one, as a prompt."""
    conversation = read_conversation(row)
    answered = conversation.messages[-1]["role"] == ASSISTANT
    messages = conversation.messages[:-1] if answered else conversation.messages
    return chat_ids(tokenizer, messages, conversation.tools)


PROMPTS: dict[str, Callable[[Row, LanguageTask, Any], str | list[int]]] = {
    "prompt_completion": lambda row, task, tokenizer: read_text(row, "prompt"),
    "messages": lambda row, task, tokenizer: _chat_prompt(row, tokenizer),
    "alpaca": lambda row, task, tokenizer: _alpaca_prompt(row),
    "text": lambda row, task, tokenizer: read_text(row, "text"),
    "template": lambda row, task, tokenizer: fill(task.prompt, row),
}
"""Format -> function that reads the prompt of a row, as text or as token ids of a conversation."""


def read_prompts(
    task: LanguageTask, rows: Sequence[Row], source: str, tokenizer: Tokenizer
) -> list[str | list[int]]:
    """Reads the prompts of rows in the task's format; the rows need no completions.

    Args:
      task: the task, whose selection of rows is not applied.
      rows: the rows.
      source: the rows' source, for error messages.
      tokenizer: the tokenizer, whose chat template turns messages into tokens.

    Raises UserError naming source and row number (from 1) for a row without a prompt.

    >>> read_prompts(LanguageTask("notes", "a", "b"), [{"prompt": "2 + 2 ="}], "new.csv", None)
    ['2 + 2 =']
    """
    prompts = []
    for number, row in enumerate(rows, start=1):
        try:
            prompts.append(PROMPTS[task.format](row, task, tokenizer))
        except UserError as error:
            raise UserError(f"{source}: row {number}: {error}") from None
    return prompts


def row_of_prompt(task: LanguageTask, text: str) -> Row:
    """Returns the row that holds a prompt's text in the column of the task's format.

    Raises UserError for a template with more than one column, which one text does not fill.

    >>> row_of_prompt(LanguageTask("chats", "a", "b", format="messages"), "2 + 2?")
    {'messages': [{'role': 'user', 'content': '2 + 2?'}]}
    """
    if task.format == "messages":
        return {"messages": [{"role": "user", "content": text}]}
    if task.format != "template":
        return {{"alpaca": "instruction", "text": "text"}.get(task.format, "prompt"): text}
    fields = string.Formatter().parse(task.prompt)
    columns = [name.split("|")[0] for _, name, _, _ in fields if name]
    if len(set(columns)) != 1:
        raise UserError(
            f"task {task.name}: its prompt has the columns {', '.join(columns) or '(none)'}: give "
            "rows with them"
        )
    return {columns[0]: text}


CHAT_FORMATS = frozenset({"messages"})
"""Formats whose text a chat template writes, including initial and final special tokens. For other
formats the tokenizer adds them."""
