"""Row filters: select and trim training rows as in the paper's runs."""

from collections.abc import Callable
from functools import partial

from goat_jax.data.sources.read import Row
from goat_jax.data.sources.text_fields import read_text
from goat_jax.data.tasks.formats.commonsense import instructed
from goat_jax.data.tasks.formats.multiple_choice import read_choices
from goat_jax.errors import UserError


def every_row(row: Row) -> Row | None:
    """Keeps the row as it is."""
    return row


def options(row: Row) -> Row | None:
    """Adds the bare question as "stem" and the correct option's text as "text" to a row.

    Raises UserError if the answer is not among the options.

    >>> asked = "Hot? A1: ice A2: fire\\nAnswer format: a1/a2"
    >>> options({"instruction": asked, "answer": "a2"})["text"]
    'fire'
    """
    row = instructed(row)
    choices = read_choices(read_text(row, "instruction"))
    texts = dict(zip(choices.labels, choices.texts, strict=True))
    if row.get("answer") not in texts:
        raise UserError(f"answer {row.get('answer')!r} is not among {', '.join(choices.labels)}")
    return {**row, "stem": choices.stem, "text": texts[row["answer"]]}


def grade_school(row: Row) -> Row | None:
    """Keeps MetaMathQA's rows that were made from GSM8K, according to the column "type".

    >>> grade_school({"query": "2 + 2?", "type": "MATH_AnsAug"}) is None
    True
    """
    return row if "GSM" in str(row.get("type", "GSM")) else None


def up_to_1300_characters(row: Row) -> Row | None:
    """Keeps questions that have up to 1,300 characters with their answers and a space between.

    >>> up_to_1300_characters({"query": "2 + 2?", "response": 1300 * "4"}) is None
    True
    """
    columns = ("query", "response") if "query" in row else ("question", "answer")
    return row if sum(len(read_text(row, name)) for name in columns) < 1300 else None


def first_code_block(row: Row, column: str = "answer") -> Row | None:
    """Keeps CodeFeedback's answers with a code block, truncated after the first block.

    Rows without text in the column are kept as they are.

    >>> first_code_block({"answer": "So: ```x = 1``` or ```x = 2```"})["answer"]
    'So: ```x = 1```'
    """
    if not isinstance(row.get(column), str):
        return row
    parts = row[column].split("```")
    return {**row, column: "```".join(parts[:2]) + "```"} if len(parts) > 1 else None


def no_refusals(row: Row, column: str = "output") -> Row | None:
    """Keeps WizardLM's answers that contain neither "sorry" nor "as an AI".

    >>> no_refusals({"output": "Sorry, I cannot."}) is None
    True
    """
    answer = str(row.get(column, "")).lower()
    return None if "sorry" in answer or "as an ai" in answer else row


SELECTIONS: dict[str, Callable[[Row], Row | None]] = {
    "all": every_row,
    "instructions": instructed,
    "options": options,
    "grade_school": grade_school,
    "up_to_1300_characters": up_to_1300_characters,
    "first_code_block": partial(first_code_block),
    "no_refusals": partial(no_refusals),
}
"""Name of a filter -> function: row -> the row to train on, or None to leave it out."""
