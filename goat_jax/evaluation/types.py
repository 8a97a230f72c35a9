"""What an examination is given and gives, whichever way it is put."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from goat_jax.data.tasks.evaluation import ExamTask, Question
from goat_jax.errors import UserError
from goat_jax.evaluation.journal import NOTHING_KEPT, Journal
from goat_jax.evaluation.judge_client import Judge
from goat_jax.evaluation.model import Subject
from goat_jax.evaluation.sampler import Sampling
from goat_jax.evaluation.sandbox.limits import Limits
from goat_jax.validation.fields import Count, NonNegative, Range, Seed, check_fields

Progress = Callable[[int, int], None]
"""(done, of how many) -> None."""


@dataclasses.dataclass(frozen=True)
class ExamOptions:
    """How an examination is run.

    Attributes:
        batch_size: prompts, or options, scored together.
        temperature: of generated answers; None: as the questions say.
        top_p, seed, max_new_tokens: as in `Sampling`; None: as the task says.
        samples: programs written for each question.
        ks: the k of pass@k.
        run_programs: whether programs that the model wrote may be run, in the sandbox.
        limits: of each program.
        workers: programs, or questions to the judge, at a time.
        judge: who grades conversations; None: answers are written, not graded.
    """

    batch_size: Count = 16
    temperature: NonNegative | None = None
    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    seed: Seed = 0
    max_new_tokens: Count | None = None
    samples: Count = 1
    ks: tuple[Count, ...] = (1,)
    run_programs: bool = False
    limits: Limits = dataclasses.field(default_factory=Limits)
    workers: Count = 1
    judge: Judge | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for k in self.ks:
            if not 1 <= k <= self.samples:
                raise UserError(
                    f"pass@{k} needs {k} samples or more: raise --samples {self.samples}"
                )

    def sampling(self, task: ExamTask, temperature: float, draw: int = 0) -> Sampling:
        """How answers are drawn.

        Args:
            temperature: unless the options have one.
            draw: 0, 1, ... for several answers to the same questions.
        """
        given = temperature if self.temperature is None else self.temperature
        return Sampling(
            temperature=given,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens or task.max_new_tokens,
            stop=task.stop,
            seed=self.seed + draw,
        )


@dataclasses.dataclass(frozen=True)
class Examination:
    """The outcome.

    Attributes:
        scores: by name; the first decides.
        records: name of a file -> its lines.
        problem: why there is no score to go by, in one line; empty if there is one.
    """

    scores: dict[str, float]
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Sitting:
    """One examination: who, what, how.

    Attributes:
        subject: the model.
        task, questions: what it is asked.
        options: how.
        progress: is told how far it is.
        journal: answers and grades so far.
    """

    subject: Subject
    task: ExamTask
    questions: Sequence[Question]
    options: ExamOptions
    progress: Progress = lambda done, total: None
    journal: Journal = NOTHING_KEPT


CUT_ANSWERS = "cut_answers"
"""Name of the score that says how many answers ended with --max-new-tokens; there if any did."""
PREDICTIONS = "predictions"
"""Name of the file with a line for each question."""
