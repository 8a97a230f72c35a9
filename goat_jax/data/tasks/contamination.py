"""Reports (never removes) evaluation questions that also occur in the training data."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from goat_jax.data.pipeline.overlap import mark_of
from goat_jax.data.sources.read import Row
from goat_jax.data.tasks.evaluation import EVALS, EvalTask, Question, load_questions
from goat_jax.data.tasks.language import CHAT_FORMATS, FORMATS, LanguageTask, load_rows
from goat_jax.data.tasks.prompts import INSTRUCTION
from goat_jax.errors import UserError

PLAIN_FORMATS = tuple(name for name in FORMATS if name not in CHAT_FORMATS)
"""Formats whose prompts do not depend on the model's chat template."""


def questions_in_training(task: EvalTask) -> list[str]:
    """Returns one line for each question set with questions that are also training rows.

    A question counts if a row's prompt has the same words (ignoring case, spaces and punctuation),
    or if both have the same id (`EvalSpec.id_columns`); plain numbers are not ids. Lines also
    report sets that cannot be read, and tasks whose training rows are the questions.

    >>> questions_in_training(EvalTask("sums", "a.jsonl", "a.jsonl", questions={"sums": "a.jsonl"}))
    ['sums: its questions are the rows it is trained on']
    """
    if task.train in task.questions.values():
        return [f"{task.name}: its questions are the rows it is trained on"]
    if task.format not in PLAIN_FORMATS or not task.questions:
        return []
    columns = EVALS[task.eval].id_columns
    rows = [row for _, row in load_rows(task, "train")]
    prompts = {_words(prompt_of(row, task)) for row in rows}
    ids = {found for row in rows if (found := id_of(row, columns))}
    notes = []
    for name, source in task.questions.items():
        try:
            questions = load_questions(dataclasses.replace(task, questions={name: source}))
        except UserError as error:
            notes.append(f"{name}: not compared with the training rows ({error})")
            continue
        count = sum(
            _words(question_text(question)) in prompts or id_of(question.row, columns) in ids
            for question in questions
        )
        if count:
            verb = "is" if count == 1 else "are"
            notes.append(
                f"{name}: {count:,} of {len(questions):,} questions {verb} also in the training "
                "rows"
            )
    return notes


def prompt_of(row: Row, task: LanguageTask) -> str:
    """Returns the prompt of a training row."""
    pieces = FORMATS[task.format](row, dataclasses.replace(task, loss_on="completion"), None)
    return "".join(piece.text for piece in pieces if not piece.in_loss)


def question_text(question: Question) -> str:
    """Returns the prompt of a question; for a conversation, that of its first turn."""
    return INSTRUCTION.replace("{asked}", question.turns[0]) if question.turns else question.prompt


def id_of(row: Mapping, columns: Sequence[str]) -> str:
    """Returns the id of a row; empty if it has none or only a number.

    >>> id_of({"id": "Mercury_7175875"}, ("id",)), id_of({"id": 12}, ("id",))
    ('Mercury_7175875', '')
    """
    text = next((str(row[column]) for column in columns if column in row), "")
    return "" if text.isdigit() else text


def _words(text: str) -> bytes:
    return mark_of(" ".join(re.findall(r"\w+", text.lower())))
