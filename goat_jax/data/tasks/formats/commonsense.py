"""Converts the eight commonsense sets from their original columns to the instruction format.

The columns are those of tensorflow_datasets and of the hub, which differ in places. The wording is
that of LLM-Adapters' training and test rows.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from goat_jax.data.sources.read import Row
from goat_jax.data.sources.text_fields import check_text, read_text
from goat_jax.errors import UserError

Parts = tuple[str, str, Sequence[str], Any]
"""(the question, the word in the labels, the options, the answer's index from 0)."""


def instructed(row: Row) -> Row:
    r"""Returns the row if it has an instruction, or else converts it to the instruction format.

    Raises UserError for a row of an unknown set or without a valid answer.

    >>> goal = {"goal": "Boil water.", "sol1": "Heat it.", "sol2": "Cool it.", "label": 0}
    >>> instructed(goal)["instruction"].splitlines()[2]
    'Solution1: Heat it.'
    >>> instructed(goal)["answer"]
    'solution1'
    """
    if "instruction" in row:
        return row
    for columns, parts in ORIGINAL:
        if columns <= row.keys():
            return _written(row, *parts(row))
    raise UserError(
        f"no column 'instruction', nor those of a known set (the row has {', '.join(row)})"
    )


def _written(row: Row, question: str, word: str, options: Sequence[str], place: Any) -> Row:
    if not word:
        labels: Sequence[str] = ("true", "false")
        listed = ""
    else:
        labels = [f"{word}{number}" for number in range(1, len(options) + 1)]
        named = [f"{label.capitalize()}: {o}" for label, o in zip(labels, options, strict=True)]
        listed = (APART if word in SET_APART else " ").join(named) + APART
    try:
        answer = labels[place] if place in range(len(labels)) else None
    except TypeError:
        answer = None
    if answer is None:
        raise UserError(f"its answer is not one of the {len(labels)} options: the row has no label")
    return {
        **({"id": row["id"]} if "id" in row else {}),
        "instruction": f"{question}{APART}{listed}Answer format: {'/'.join(labels)}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


APART = "\n\n"
SET_APART = frozenset({"solution"})
"""Label words whose options are written in separate paragraphs."""


TRUTH = {"true": 0, "1": 0, "false": 1, "0": 1}
"""Written answer -> its index among true and false."""


def _place(value: Any, start: int = 0) -> int | None:
    """Converts a number, possibly written as text, to an index from 0; None for anything else."""
    try:
        return int(value) - start
    except (TypeError, ValueError):
        return None


def _boolq(row: Row) -> Parts:
    question = read_text(row, "question")
    prompt = f"Please answer the following question with true or false, question: {question}?"
    # Tables hold the answer as text, and bool("False") is True.
    return prompt, "", (), TRUTH.get(str(row["answer"]).lower())


def _piqa(row: Row) -> Parts:
    prompt = f"Please choose the correct solution to the question: {read_text(row, 'goal')}"
    return prompt, "solution", _columns(row, "sol1", "sol2"), _place(row["label"])


def _siqa(row: Row) -> Parts:
    options = _columns(row, "answerA", "answerB", "answerC")
    prompt = " ".join(_columns(row, "context", "question"))
    return _question(prompt, options, _place(row["label"], 1))


def _hellaswag(row: Row) -> Parts:
    context = read_text(row, "ctx" if row.get("ctx") else "context")
    prompt = (
        "Please choose the correct ending to complete the given sentence: "
        f"{read_text(row, 'activity_label')}: {context}"
    )
    return prompt, "ending", _texts(row["endings"]), _place(row["label"])


def _winogrande(row: Row) -> Parts:
    prompt = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{read_text(row, 'sentence')}"
    )
    # TFDS gives a class id from 0, the hub an option number from 1.
    place = _place(row["label"]) if "label" in row else _place(row["answer"], 1)
    return prompt, "option", _columns(row, "option1", "option2"), place


def _listed(row: Row) -> Parts:
    """Reads ARC, and the hub's OpenBookQA: choices with their labels."""
    labels = _texts(row["choices"]["label"])
    key = _texts([row["answerKey"]])[0]
    place = labels.index(key) if key in labels else None
    question = row.get("question_stem") or row["question"]
    return _question(question, _texts(row["choices"]["text"]), place)


def _obqa(row: Row) -> Parts:
    """Reads TFDS's OpenBookQA: choices as fields of the question."""
    question = row["question"]
    options = [question[f"choice_{letter}"] for letter in "ABCD"]
    key = row["answerKey"]
    return _question(question["stem"], options, "ABCD".find(key) if isinstance(key, str) else key)


def _question(question: str, options: Sequence[str], place: int | None) -> Parts:
    return f"Please choose the correct answer to the question: {question}", "answer", options, place


def _columns(row: Row, *columns: str) -> list[str]:
    return [read_text(row, column) for column in columns]


def _texts(values: Iterable[Any]) -> list[str]:
    """Returns options or labels as text; each must be text or an integer."""
    texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    return [check_text(value, f"option {n}", True) for n, value in enumerate(texts, start=1)]


ORIGINAL: tuple[tuple[set[str], Callable[[Row], Parts]], ...] = (
    ({"goal", "sol1", "sol2", "label"}, _piqa),
    ({"context", "question", "answerA", "answerB", "answerC", "label"}, _siqa),
    ({"endings", "activity_label", "label"}, _hellaswag),
    ({"sentence", "option1", "option2"}, _winogrande),
    ({"choices", "answerKey"}, _listed),
    ({"question", "fact1", "answerKey"}, _obqa),
    ({"question", "passage", "answer"}, _boolq),
)
"""Pairs of the columns that identify a set and its reader; the first match is used."""
