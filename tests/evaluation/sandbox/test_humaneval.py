"""The whole harness on HumanEval's own solutions: all pass as they are, none when broken."""

import pytest

from goat_jax.data.sources.read import read_rows
from goat_jax.errors import UserError
from goat_jax.evaluation.code import trial_of
from goat_jax.evaluation.pass_at_k import solution
from goat_jax.evaluation.sandbox.limits import MEBIBYTE, Limits
from goat_jax.evaluation.sandbox.run import check_sandbox, run_programs

LIMITS = Limits(seconds=30.0, cpu_seconds=15, memory=512 * MEBIBYTE)


@pytest.fixture(scope="module")
def rows(shared):
    try:
        check_sandbox()
    except UserError as error:
        pytest.skip(str(error))
    return read_rows(shared / "data" / "humaneval" / "test.jsonl.gz")


def passed(rows, answer):
    programs = [
        trial_of(solution(row["prompt"], row["entry_point"], answer(row)), row) for row in rows
    ]
    outcomes = run_programs(programs, LIMITS, workers=2)
    return [row["task_id"] for row, outcome in zip(rows, outcomes, strict=True) if outcome.passed]


def fenced(row):
    """The answer of a model that follows instructions."""
    return f"Sure:\n```python\n{row['prompt']}{row['canonical_solution']}```\nIt works."


def broken(row):
    """The right program, the wrong result."""
    name = row["entry_point"]
    return (
        f"```python\n{row['prompt']}{row['canonical_solution']}\n\n"
        f"_right = {name}\n\ndef {name}(*args):\n    return [_right(*args)]\n```"
    )


def bare(row):
    """The answer of a model that continues the prompt."""
    return row["canonical_solution"]


# Every tenth problem in CI, all of them nightly: each takes two processes, by the same code.
SHARES = [pytest.param(10, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("every", SHARES)
@pytest.mark.parametrize("answer", [bare, fenced])
def test_all_canonical_solutions_pass(rows, answer, every):
    assert len(rows) == 164
    chosen = rows[::every]
    found = passed(chosen, answer)
    assert len(found) == len(chosen), set(row["task_id"] for row in chosen) - set(found)


@pytest.mark.parametrize("every", SHARES)
def test_no_broken_solution_passes(rows, every):
    assert passed(rows[::every], broken) == []


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["    pass\n", "I cannot.", "    return None", ""])
def test_no_empty_answer_passes(rows, answer):
    assert passed(rows[::20], lambda row: answer) == []
