"""Evaluation by unit tests: the model writes programs, and the sandbox tests them."""

from __future__ import annotations

from goat_jax.data.sources.read import Row
from goat_jax.data.tasks.evaluation import EvalTask, mean_by_group
from goat_jax.errors import UserError
from goat_jax.evaluation.generate_and_loglikelihood import answer_all, cut_share
from goat_jax.evaluation.pass_at_k import definitions, pass_at_k, solution
from goat_jax.evaluation.sampler import Answer
from goat_jax.evaluation.sandbox.limits import Trial
from goat_jax.evaluation.sandbox.run import check_sandbox, run_programs
from goat_jax.evaluation.types import PREDICTIONS, EvalOptions, EvalRequest, EvalResult

TEMPERATURE = 0.8
"""Sampling temperature for several samples a question; a single sample is decoded greedily."""


def score_by_tests(request: EvalRequest) -> EvalResult:
    """Generates `samples` programs per question, runs each with its tests and computes pass@k.

    Raises:
        UserError: the options do not allow running programs, or this machine cannot confine them.
    """
    options, questions = request.options, request.questions
    check_programs(request.task, options)
    programs, answers = _written(request)
    rows = [question.row for question in questions] * options.samples
    total = 2 * len(programs)
    tested = [trial_of(program, row) for program, row in zip(programs, rows, strict=True)]
    outcomes = run_programs(
        tested,
        options.limits,
        options.workers,
        lambda done: request.progress(len(programs) + done, total),
    )
    records = [
        {
            "task_id": questions[place % len(questions)].id,
            "sample": place // len(questions),
            "completion": program,
            "cut": answers[place].cut,
            "passed": outcome.passed,
            "result": "passed" if outcome.passed else outcome.detail,
        }
        for place, (program, outcome) in enumerate(zip(programs, outcomes, strict=True))
    ]
    passed = [
        sum(outcome.passed for outcome in outcomes[place :: len(questions)])
        for place in range(len(questions))
    ]
    scores: dict[str, float] = {}
    for k in options.ks:
        chances = [pass_at_k(options.samples, count, k) for count in passed]
        scores |= mean_by_group(f"pass@{k}", questions, chances)
    return EvalResult(scores | cut_share(answers), {PREDICTIONS: records})


def trial_of(program: str, row: Row) -> Trial:
    """Combines a program with the test of its question, given in HumanEval's format."""
    name = str(row["entry_point"])
    return Trial(
        program,
        test=f"{row['test']}\n\ncheck({name})\n",
        known=definitions(str(row["prompt"])),
        functions=(name,),
    )


def check_programs(task: EvalTask, options: EvalOptions) -> None:
    """Checks that the options allow running programs and that this machine can confine them.

    Raises:
        UserError: one of the two fails; the message says how to allow it, or what is missing.
    """
    if not options.run_programs:
        raise UserError(
            f"task {task.name} is scored by running programs that the model wrote: allow this with "
            "--run-programs (they run in a sandbox, see goat_jax.evaluation.sandbox)"
        )
    check_sandbox()


def _written(request: EvalRequest) -> tuple[list[str], list[Answer]]:
    """Returns all programs and the answers they come from, sample by sample.

    The first sample of every question comes first, then the second of every question, and so on.
    """
    options, questions = request.options, request.questions
    generator = request.model.generator()
    total = 2 * options.samples * len(questions)
    programs, written = [], []
    for draw in range(options.samples):
        temperature = TEMPERATURE if options.samples > 1 else 0.0
        before = len(programs)
        answers = answer_all(
            generator,
            [question.prompt for question in questions],
            options.sampling(request.task, temperature, draw),
            options.batch_size,
            lambda done, before=before: request.progress(before + done, total),
            request.journal,
        )
        written += answers
        programs += [
            solution(str(question.row["prompt"]), str(question.row["entry_point"]), answer.text)
            for question, answer in zip(questions, answers, strict=True)
        ]
    return programs, written
