"""Inputs and results of an evaluation, shared by all scoring methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from goat_jax.data.tasks.evaluation import EvalTask, Question
from goat_jax.errors import UserError
from goat_jax.evaluation.journal import NOTHING_KEPT, Journal
from goat_jax.evaluation.judge_client import Judge
from goat_jax.evaluation.model import EvalModel
from goat_jax.evaluation.sampler import Sampling
from goat_jax.evaluation.sandbox.limits import Limits
from goat_jax.validation.fields import Count, NonNegative, Range, Seed, check_fields

Progress = Callable[[int, int], None]
"""(number of finished items, total number) -> None."""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Settings of an evaluation.

    Attributes:
        batch_size: the number of prompts, or of answer options, per batch.
        temperature: the temperature of generated answers; None: as the scoring method or the
            question sets it.
        top_p: the probability mass to sample from, as in `Sampling`.
        seed: the random seed, as in `Sampling`.
        beams: the number of beams, as in `Sampling`.
        max_new_tokens: the largest number of new tokens per answer; None: as the task sets it.
        samples: the number of programs generated for each question.
        ks: the values k of pass@k.
        run_programs: whether programs that the model wrote may be run, in the sandbox.
        limits: the resource limits of each program.
        workers: the number of programs, or of requests to the judge, that run at a time.
        judge: the judge of conversations; None: answers are written but not graded.

    Raises:
        UserError: a number is out of its range, or a k is above `samples`.
    """

    batch_size: Count = 16
    temperature: NonNegative | None = None
    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    seed: Seed = 0
    beams: Count = 1
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

    def sampling(self, task: EvalTask, temperature: float, draw: int = 0) -> Sampling:
        """Returns the sampling settings for answers to a task.

        Args:
            task: the eval task.
            temperature: the temperature if the options have none.
            draw: the number of the sample, 0, 1, ..., of several answers to the same questions.
        """
        chosen = temperature if self.temperature is None else self.temperature
        return Sampling(
            temperature=chosen,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens or task.max_new_tokens,
            stop=task.stop,
            seed=self.seed + draw,
            beams=self.beams,
        )


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation.

    Attributes:
        scores: the scores by name; the first is the main one.
        records: the name of each record file -> its lines.
        problem: the reason that there is no usable score, in one line; empty if there is one.
    """

    scores: dict[str, float]
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class EvalRequest:
    """Everything that one evaluation needs.

    Attributes:
        model: the model.
        task: the eval task.
        questions: the task's questions.
        options: the settings of the evaluation.
        progress: a function that is called with the number of finished items and the total.
        journal: the answers and grades so far.
    """

    model: EvalModel
    task: EvalTask
    questions: Sequence[Question]
    options: EvalOptions
    progress: Progress = lambda done, total: None
    journal: Journal = NOTHING_KEPT


CUT_ANSWERS = "cut_answers"
"""Name of the score for the fraction of answers cut off by --max-new-tokens; absent if it is 0."""
PREDICTIONS = "predictions"
"""Name of the file with a line for each question."""
