"""Language tasks with an evaluation: the model answers questions, and its answers are scored.

Each kind of evaluation is one entry of `EVALS`: how to read a row as a question, how to extract an
answer from generated text, and the scoring methods that apply. A task names its kind in `eval`; no
other code depends on task names.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from goat_jax.data.sources.read import Row, read_source
from goat_jax.data.tasks.formats.commonsense import instructed
from goat_jax.data.tasks.formats.final_number import extract_number, strict_number
from goat_jax.data.tasks.formats.mt_bench import TEMPERATURES, turns_of
from goat_jax.data.tasks.formats.multiple_choice import extract_label, read_choices
from goat_jax.data.tasks.formats.stated_answer import stated_answer
from goat_jax.data.tasks.language import (
    LANGUAGE_METRICS,
    TOKEN_ACCURACY,
    LanguageTask,
    fill,
    load_rows,
)
from goat_jax.data.tasks.prompts import CODE_REQUEST
from goat_jax.data.tasks.splits import source_of, spaced
from goat_jax.errors import UserError, nearest

GENERATE, LIKELIHOOD, CODE, JUDGE, LOSS = "generate", "likelihood", "code", "judge", "loss"
"""Scoring methods: the generated answer; the most likely option; the tests that a generated program
passes; a judge's grade; and the loss of the evaluation rows, as for tasks without an evaluation."""

ACCURACY = "accuracy"
"""Metric of evaluation rows with options: the share whose correct option is the most likely."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of an evaluation.

    Attributes:
      id: the row's id, or else its number from 1.
      group: the name of the question set that the question is from.
      row: the row as it was read.
      prompt: the prompt for the model.
      answer: the correct answer, in the form that `EvalSpec.extract` returns; empty if unknown.
      labels: the possible answers of a multiple-choice question.
      continuations: the text for each label whose likelihood is compared.
      turns: the user's message in each turn of a conversation.
      temperature: the sampling temperature of the answer, if the evaluation sets one.
    """

    id: str
    group: str
    row: Row = dataclasses.field(repr=False)
    prompt: str
    answer: str = ""
    labels: tuple[str, ...] = ()
    continuations: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """Kind of evaluation.

    Attributes:
      read: the row reader: (row, task) -> fields of `Question`.
      extract: the answer parser: (question, generated text) -> the answer, or None.
      scoring_methods: the scoring methods that apply; the first one is the default.
      id_columns: the columns that may hold a row's id.
      strictly: a stricter answer parser for a second score, accuracy_strict; None: no such score.
    """

    read: "Callable[[Row, EvalTask], dict[str, Any]]"
    extract: Callable[[Question, str], str | None]
    scoring_methods: tuple[str, ...]
    id_columns: tuple[str, ...] = ()
    strictly: Callable[[Question, str], str | None] | None = None


@dataclasses.dataclass(frozen=True)
class EvalTask(LanguageTask):
    """Language task with questions for evaluation.

    Attributes:
      questions: the question sets: name of a set -> its source string.
      eval: a key of `EVALS`, the kind of evaluation.
      scoring: the default scoring method; "" means the first one of the kind of evaluation.
      continuation: the template, with {label} or {option}, of the text whose likelihood is compared
        for each option.
      max_new_tokens: the largest number of tokens in an answer.
      stop: the texts that end an answer.
      question_limit: the largest number of questions of each set, evenly spaced; None: all.
      metrics: names from `METRICS`. With accuracy, the evaluation rows are questions as well: the
        most likely option is the prediction, and loss and perplexity are those of correct options.

    >>> EvalTask("sums", "a.jsonl", "a.jsonl", eval="nunber")
    Traceback (most recent call last):
    goat_jax.errors.UserError: task sums: unknown eval 'nunber' (did you mean 'number'?): use one \
of choice, number, stated, program, conversation
    """

    questions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    eval: str = "choice"
    scoring: str = ""
    continuation: str = "the correct answer is {label}"
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    question_limit: int | None = None
    METRICS: ClassVar[tuple[str, ...]] = (*LANGUAGE_METRICS, ACCURACY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval not in EVALS:
            hint = nearest(self.eval, EVALS)
            raise UserError(
                f"task {self.name}: unknown eval {self.eval!r}{hint}: use one of {', '.join(EVALS)}"
            )
        if self.max_new_tokens < 1 or (self.question_limit is not None and self.question_limit < 1):
            raise UserError(
                f"task {self.name}: max_new_tokens {self.max_new_tokens} and question_limit"
                f" {self.question_limit} must be 1 or more"
            )
        if self.compares_options:
            self._check_options()
        scoring = self.scoring or EVALS[self.eval].scoring_methods[0]
        object.__setattr__(self, "scoring", self.checked_scoring(scoring))

    def _check_options(self) -> None:
        """Raises UserError unless there are options, and metrics of the correct ones."""
        if LIKELIHOOD not in EVALS[self.eval].scoring_methods:
            raise UserError(
                f"task {self.name}: metric {ACCURACY} compares options, and eval {self.eval} has "
                "none: use perplexity"
            )
        if TOKEN_ACCURACY in self.metrics:
            raise UserError(
                f"task {self.name}: {TOKEN_ACCURACY} would count the tokens of wrong options, too: "
                f"with {ACCURACY} use perplexity"
            )

    @property
    def compares_options(self) -> bool:
        """True if the evaluation rows are questions, whose options are compared."""
        return ACCURACY in self.metrics

    @property
    def scoring_methods(self) -> tuple[str, ...]:
        """Scoring methods of this task, its default first."""
        return tuple(dict.fromkeys((self.scoring, *EVALS[self.eval].scoring_methods, LOSS)))

    def checked_scoring(self, scoring: str) -> str:
        """Returns the scoring method; raises UserError if it does not apply to this task."""
        known = (*EVALS[self.eval].scoring_methods, LOSS)
        if scoring not in known:
            raise UserError(
                f"task {self.name} cannot be scored by {scoring!r}: use one of {', '.join(known)}"
            )
        return scoring


def scoring_of(task: Any, requested: str | None = None) -> str:
    """Returns the scoring method of a task of any kind.

    Args:
      task: the task.
      requested: the requested method; None: the default of an `EvalTask`, the loss for other
        tasks.

    Raises UserError for a method that the task does not support.

    >>> scoring_of(LanguageTask("notes", "a.jsonl", "b.jsonl"))
    'loss'
    """
    if isinstance(task, EvalTask):
        return task.checked_scoring(requested or task.scoring)
    if requested not in (None, LOSS):
        raise UserError(
            f"task {task.name} has no questions: it can be scored by {LOSS} only, not {requested!r}"
        )
    return LOSS


def load_questions(task: EvalTask) -> list[Question]:
    """Loads the questions of all of a task's question sets.

    Raises UserError for a task without questions, and naming source and row (from 1) for a row
    that is not a valid question.
    """
    if not task.questions:
        raise UserError(f"task {task.name} has no questions: give it a source, or --scoring {LOSS}")
    questions = []
    for group, source in task.questions.items():
        rows = read_source(source, "test", task.data_dir)
        chosen = [(index, rows[index]) for index in spaced(len(rows), task.question_limit)]
        questions += _questions(task, chosen, group, source)
    return questions


def evaluation_questions(task: EvalTask, split: str) -> list[Question]:
    """Loads the rows of a task's split as questions.

    Raises UserError naming source and row (from 1) for a row that is not a valid question.
    """
    return _questions(task, load_rows(task, split), task.name, source_of(task, split)[0])


def _questions(
    task: EvalTask, rows: Sequence[tuple[int, Row]], group: str, source: str
) -> list[Question]:
    spec, questions = EVALS[task.eval], []
    for index, row in rows:
        number = next((row[c] for c in spec.id_columns if c in row), index + 1)
        try:
            fields = spec.read(row, task)
        except UserError as error:
            raise UserError(f"{source}: row {index + 1}: {error}") from None
        questions.append(Question(id=str(number), group=group, row=row, **fields))
    return questions


def _text(row: Row, *columns: str) -> str:
    for column in columns:
        if isinstance(row.get(column), str):
            return row[column]
    raise UserError(f"no text in column {' or '.join(columns)} (the row has {', '.join(row)})")


def _read_choice(row: Row, task: EvalTask) -> dict[str, Any]:
    row = instructed(row)
    choices = read_choices(_text(row, "instruction"))
    answer = _text(row, "answer").strip()
    if answer not in choices.labels:
        raise UserError(f"answer {answer!r} is not among the options {', '.join(choices.labels)}")
    options = zip(choices.labels, choices.texts, strict=True)
    return {
        "prompt": fill(task.prompt, row | {"stem": choices.stem}),
        "answer": answer,
        "labels": choices.labels,
        "continuations": tuple(
            fill(task.continuation, {"label": label, "option": text}) for label, text in options
        ),
    }


def _read_number(row: Row, task: EvalTask) -> dict[str, Any]:
    number = extract_number(_text(row, "answer"))
    if number is None:
        raise UserError(f"no number in its answer {row['answer'][-40:]!r}")
    return {"prompt": fill(task.prompt, row), "answer": str(number)}


def _read_stated(row: Row, task: EvalTask) -> dict[str, Any]:
    answer = stated_answer(_text(row, "answer"))
    if answer is None:
        raise UserError(f"no stated answer in {row['answer'][-40:]!r}")
    return {"prompt": fill(task.prompt, row), "answer": answer}


def _read_program(row: Row, task: EvalTask) -> dict[str, Any]:
    for column in ("test", "entry_point"):
        _text(row, column)
    _text(row, "prompt")
    return {"prompt": fill(task.prompt, row | {"asked": fill(CODE_REQUEST, row)})}


def _read_conversation(row: Row, task: EvalTask) -> dict[str, Any]:
    turns = turns_of(row)
    return {
        "prompt": turns[0],
        "turns": turns,
        "temperature": TEMPERATURES.get(str(row.get("category")), 0.7),
    }


def _label(question: Question, text: str) -> str | None:
    return extract_label(text, question.labels)


def _number(question: Question, text: str) -> str | None:
    del question
    number = extract_number(text)
    return None if number is None else str(number)


def _strict_number(question: Question, text: str) -> str | None:
    del question
    number = strict_number(text)
    return None if number is None else str(number)


def _stated(question: Question, text: str) -> str | None:
    del question
    return stated_answer(text)


def _whole(question: Question, text: str) -> str | None:
    del question
    return text


EVALS: dict[str, EvalSpec] = {
    "choice": EvalSpec(_read_choice, _label, (GENERATE, LIKELIHOOD), ("id",)),
    "number": EvalSpec(_read_number, _number, (GENERATE,), ("id",), _strict_number),
    "stated": EvalSpec(_read_stated, _stated, (GENERATE,), ("id",)),
    "program": EvalSpec(_read_program, _whole, (CODE,), ("task_id",)),
    "conversation": EvalSpec(_read_conversation, _whole, (JUDGE,), ("question_id",)),
}
"""Name of a kind of evaluation -> its definition."""


def share_correct(questions: Sequence[Question], correct: Sequence[bool]) -> dict[str, float]:
    """Returns the mean accuracy over the question sets, and each set's if there are several.

    >>> sets = [Question("1", "a", {}, ""), Question("2", "a", {}, ""), Question("1", "b", {}, "")]
    >>> share_correct(sets, [True, False, True])
    {'accuracy': 0.75, 'accuracy/a': 0.5, 'accuracy/b': 1.0}
    """
    return mean_by_group("accuracy", questions, [float(each) for each in correct])


def mean_by_group(
    name: str, questions: Sequence[Question], values: Sequence[float]
) -> dict[str, float]:
    """Returns the mean of the question sets' mean values, and each set's if there are several."""
    groups: dict[str, list[float]] = {}
    for question, value in zip(questions, values, strict=True):
        groups.setdefault(question.group, []).append(value)
    means = {group: sum(own) / len(own) for group, own in groups.items()}
    own = {f"{name}/{group}": mean for group, mean in means.items()} if len(means) > 1 else {}
    return {name: sum(means.values()) / len(means), **own}


def named_by_set(scores: Mapping[str, float], sets: Collection[str]) -> dict[str, float]:
    """Returns the scores, with added entries named by the question set if there is only one.

    >>> named_by_set({"accuracy": 0.5}, ["boolq"])
    {'accuracy': 0.5, 'accuracy/boolq': 0.5}
    """
    named = {f"{name}/{only}": v for only in sets for name, v in scores.items() if "/" not in name}
    return {**scores, **named} if len(sets) == 1 else dict(scores)
