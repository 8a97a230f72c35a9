"""MT-Bench files in FastChat's format: questions, answers and verdicts.

The fields are FastChat's (github.com/lm-sys/FastChat, fastchat/llm_judge), so FastChat's scripts
can read the files written here. The judge prompts below are ours; scores comparable with published
ones need FastChat's file of judge prompts (`judge_prompts`).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.data.sources.read import Row, read_rows
from goat_jax.errors import UserError

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Category of a question -> the sampling temperature of its answer."""

WITH_REFERENCE = frozenset({"math", "coding", "reasoning"})
"""Categories that are judged with a reference answer."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_OF_TEN = r"(?:\s*/\s*10(?!\d))?"
RATINGS = (
    re.compile(rf"\[\[\s*{_NUMBER}{_OF_TEN}\s*\]\]"),
    re.compile(
        rf"\b(?:rating|grade|score)\b[\s*_]*(?:is|[:=])[\s*_\[]*{_NUMBER}{_OF_TEN}"
        r"(?!\.?\d|\s*[-\u2013/]\s*\d)",
        re.IGNORECASE,
    ),
    re.compile(rf"\[\s*{_NUMBER}\s*\]"),
)
"""Patterns of a grade, in order of preference: [[7]]; Rating: 7; [7]."""
_TAG = r"(?:think|thinking|thought|thoughts|reasoning)"
THOUGHT = re.compile(rf"<{_TAG}>.*?(?:</{_TAG}>|\Z)", re.IGNORECASE | re.DOTALL)
BEGUN_THOUGHT = re.compile(rf"\A.*</{_TAG}>", re.IGNORECASE | re.DOTALL)
"""Patterns of a reasoning block: `THOUGHT`, closed or not; `BEGUN_THOUGHT`, the end of one that the
prompt opened."""
SCALE = (1.0, 10.0)


def answer_record(
    question: str, model: str, turns: Sequence[str], answer: str, time: float
) -> dict[str, Any]:
    """Returns one line of FastChat's answer file.

    Args:
      question: the question's id, written as an integer if it consists of digits.
      model: the model's name.
      turns: the model's answer in each turn.
      answer: the id of this answer.
      time: the time in seconds since 1970.

    >>> answer_record("81", "goat", ["Aloha."], "a1", 0.0)["choices"]
    [{'index': 0, 'turns': ['Aloha.']}]
    """
    return {
        "question_id": int(question) if question.isdigit() else question,
        "answer_id": answer,
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": time,
    }


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """Prompt of the judge model.

    Attributes:
      name: the prompt's name, recorded in verdicts.
      system: the system message with the judge's instructions.
      template: the template of the conversation, with {question} and {answer}, or {question_1},
        {answer_1}, {question_2}, {answer_2}, and {ref_answer_1} ... if there are references.
    """

    name: str
    system: str
    template: str


_TASK = (
    "You grade one answer of an AI assistant. Weigh whether it is correct, helpful, relevant, deep "
    "and detailed enough, and does what was asked. Give your reasons in a few sentences. Then end "
    'with a grade from 1 (useless) to 10 (excellent) written exactly as "[[grade]]", for example '
    '"[[5]]".'
)
_SECOND = " The conversation has two questions: grade the answer to the second."
_COMPARE = " Compare with the reference answer, find mistakes and count them against the grade."
_SINGLE = "[Question]\n{question}\n\n[Answer to grade]\n{answer}\n[End of the answer]"
_MULTI = (
    "[First question]\n{question_1}\n\n[Its answer]\n{answer_1}\n\n"
    "[Second question]\n{question_2}\n\n[Answer to grade]\n{answer_2}\n[End of the answer]"
)
_REFERENCE = "[Reference answer]\n{ref_answer_1}\n[End of the reference]\n\n"
_REFERENCES = (
    "[Reference for the first question]\n{ref_answer_1}\n\n"
    "[Reference for the second question]\n{ref_answer_2}\n[End of the references]\n\n"
)
OWN_PROMPTS = {
    "single-v1": JudgePrompt("goat-jax-single", _TASK, _SINGLE),
    "single-math-v1": JudgePrompt("goat-jax-single-ref", _TASK + _COMPARE, _REFERENCE + _SINGLE),
    "single-v1-multi-turn": JudgePrompt("goat-jax-multi", _TASK + _SECOND, _MULTI),
    "single-math-v1-multi-turn": JudgePrompt(
        "goat-jax-multi-ref", _TASK + _SECOND + _COMPARE, _REFERENCES + _MULTI
    ),
}
"""Our judge prompts, under the names of FastChat's corresponding ones."""


def read_judge_prompts(path: str | Path) -> dict[str, JudgePrompt]:
    """Reads judge prompts in FastChat's format (columns name, system_prompt, prompt_template).

    Raises UserError for a row without these texts, or if a prompt of `OWN_PROMPTS` is missing.
    """
    prompts = {}
    for number, row in enumerate(read_rows(path), start=1):
        values = [row.get(name) for name in ("name", "system_prompt", "prompt_template")]
        if not all(isinstance(value, str) for value in values):
            raise UserError(
                f"{path}: row {number}: needs text in name, system_prompt and prompt_template"
            )
        prompts[str(values[0])] = JudgePrompt(*map(str, values))
    missing = [name for name in OWN_PROMPTS if name not in prompts]
    if missing:
        raise UserError(f"{path}: no prompt is named {missing[0]!r}: use FastChat's judge_prompts")
    return prompts


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Reads question id -> reference answers of its turns from a FastChat answer file."""
    references = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            references[str(row["question_id"])] = [str(t) for t in row["choices"][0]["turns"]]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{path}: row {number}: needs question_id and choices[0].turns"
            ) from None
    return references


def judge_messages(
    prompts: Mapping[str, JudgePrompt],
    category: str,
    questions: Sequence[str],
    answers: Sequence[str],
    reference: Sequence[str] | None,
) -> tuple[str, list[dict[str, str]]]:
    """Builds the judge's messages about the last of one or two turns: (prompt name, messages).

    Raises UserError if the prompt's template has a field that the conversation does not fill.

    >>> name, messages = judge_messages(OWN_PROMPTS, "writing", ["Why?"], ["So."], None)
    >>> name, messages[1]["content"].splitlines()[1]
    ('goat-jax-single', 'Why?')
    """
    compare = category in WITH_REFERENCE and reference is not None
    key = ("single-math-v1" if compare else "single-v1") + ("-multi-turn" * (len(questions) > 1))
    prompt = prompts[key]
    values = {"question": questions[-1], "answer": answers[-1]}
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        values |= {f"question_{turn}": question, f"answer_{turn}": answer}
    for turn, text in enumerate(reference or (), start=1):
        values[f"ref_answer_{turn}"] = text
    try:
        request = prompt.template.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"judge prompt {prompt.name}: its template does not fit ({error})"
        ) from None
    return prompt.name, [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": request},
    ]


def read_rating(text: str) -> float | None:
    """Parses the last grade in a verdict, outside of reasoning blocks; None if not in 1 to 10.

    >>> read_rating("Good. [[8.5]]"), read_rating("<think>[[2]]</think>Rating: 7"), read_rating("8")
    (8.5, 7.0, None)
    """
    text = BEGUN_THOUGHT.sub("", THOUGHT.sub("", text))
    for form in RATINGS:
        if grades := form.findall(text):
            grade = float(grades[-1])
            return grade if SCALE[0] <= grade <= SCALE[1] else None
    return None


def turns_of(row: Row) -> tuple[str, ...]:
    """Returns the user's messages of a row; raises UserError if they are not a list of texts.

    >>> turns_of({"turns": ["Why?", "And then?"]})
    ('Why?', 'And then?')
    """
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise UserError(f"no list of texts in column 'turns' (the row has {', '.join(row)})")
    return tuple(turns)
