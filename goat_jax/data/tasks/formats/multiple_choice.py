"""Multiple-choice questions in the instruction format: parses options and answers."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from goat_jax.errors import UserError

ANSWER_FORMAT = "Answer format:"


@dataclass(frozen=True)
class Choices:
    """Parts of a multiple-choice question.

    Attributes:
      stem: the question without the options, the line on the answer format, and the initial
        instruction "Please ...:".
      labels: the possible answers, such as answer1, answer2.
      texts: the option text of each label; the labels themselves if the question lists no options.

    >>> Choices("Which is hot?", ("answer1", "answer2"), ("ice", "fire")).texts[1]
    'fire'
    """

    stem: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]


def read_choices(instruction: str) -> Choices:
    r"""Parses an instruction that ends with a line such as "Answer format: answer1/answer2".

    Options begin with their label (in any case) and a colon. They are searched in order, so an
    option's text may mention an earlier label. Raises UserError without the line on the answer
    format, or if only some of the options are found.

    >>> read_choices("Hot? \n\nAnswer1: ice Answer2: fire\n\nAnswer format: answer1/answer2").texts
    ('ice', 'fire')
    >>> read_choices("Is ice hot?\n\nAnswer format: true/false")
    Choices(stem='Is ice hot?', labels=('true', 'false'), texts=('true', 'false'))
    """
    body, mark, named = instruction.rpartition(ANSWER_FORMAT)
    labels = tuple(label.strip() for label in named.strip().rstrip(".").split("/"))
    if not mark or len(labels) < 2 or not all(labels):
        raise UserError(f"no line {ANSWER_FORMAT!r} with two or more labels at the end")
    starts: list[tuple[int, int]] = []
    for label in labels:
        match = re.compile(rf"\b{re.escape(label)}\s*:", re.IGNORECASE).search(
            body, starts[-1][1] if starts else 0
        )
        if match is None:
            break
        starts.append(match.span())
    if len(starts) < len(labels):
        if starts:
            raise UserError(
                f"{len(starts)} of {len(labels)} options are found: the answer format lists "
                f"{labels}"
            )
        return Choices(_bare(body), labels, labels)
    ends = [start for start, _ in starts[1:]] + [len(body)]
    texts = tuple(body[begin:end].strip() for (_, begin), end in zip(starts, ends, strict=True))
    return Choices(_bare(body[: starts[0][0]]), labels, texts)


def _bare(body: str) -> str:
    return re.sub(r"^Please [^:]*:\s*", "", body.strip())


def extract_label(text: str, labels: Sequence[str]) -> str | None:
    """Returns the first label in an answer, as in the reference evaluation; None if there is none.

    Ignores case and spaces before a label's number. A label inside a longer word does not count.

    >>> extract_label("The correct answer is Answer 2, not answer1.", ("answer1", "answer2"))
    'answer2'
    >>> extract_label("untrue", ("true", "false")) is None
    True
    """
    places = {label: _pattern(label).search(text) for label in labels}
    starts = {label: match.start() for label, match in places.items() if match}
    return min(starts, key=lambda label: starts[label]) if starts else None


def _pattern(label: str) -> re.Pattern[str]:
    word = label.rstrip(string.digits)
    number = label[len(word) :]
    spaced = rf"{re.escape(word)}\s*{number}" if word and number else re.escape(label)
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)
