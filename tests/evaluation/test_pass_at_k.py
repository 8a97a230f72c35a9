"""Programs cut out of answers, and pass@k against its definition."""

import itertools

import pytest

from goat_jax.errors import UserError
from goat_jax.evaluation.pass_at_k import code_in, definitions, pass_at_k, solution

PROMPT = (
    'from math import sqrt\n\n\ndef root(x):\n    """The root.\n    >>> root(4)\n    2.0\n    """\n'
)
TEST = "def check(candidate):\n    assert candidate(9) == 3\n"
WHOLE = "def root(x):\n    return sqrt(x)\n"


def passes(answer):
    program = solution(PROMPT, "root", answer) + TEST + "check(root)\n"
    try:
        exec(compile(program, "program", "exec"), {})
    except BaseException:
        return False
    return True


@pytest.mark.parametrize(
    "answer",
    [
        "    return sqrt(x)\n",
        "return sqrt(x)",
        "    y = sqrt(x)\n    return y\n\n\ndef other():\n    return nothing.at.all(\n",
        "    return sqrt(x)\n\nif __name__ == '__main__':\n    root(]",
        "    return sqrt(x)\n\nprint(root(4)",
        "    return sqrt(x)\n# and so on (",
        "y = sqrt(x)\n    return y",
        "y = sqrt(x)\nreturn y",
        "    return sqrt(x)\n```\nThis takes the root.",
        "Here you are:\n```python\n" + WHOLE + "```\nIt takes the root.",
        "```\n" + WHOLE + "```",
        "```python\n" + WHOLE,
        WHOLE + "\nThis function takes the root of x.",
        WHOLE + "```\nThat is it.",
        "  def root(x):\n      return sqrt(x)\n",
        "import math\n\ndef helper(x):\n    return math.sqrt(x)\n\n"
        + WHOLE.replace("sqrt", "helper"),
        "\n\n    return sqrt(x)",
    ],
)
def test_a_right_answer_is_found(answer):
    assert passes(answer)


@pytest.mark.parametrize(
    "answer", ["    return x", "", "I do not know.", "```python\n```", "(" * 300]
)
def test_a_wrong_answer_fails(answer):
    assert not passes(answer)


@pytest.mark.parametrize("prompt", [PROMPT, "def helper():\n    return 1\n\ndef root(x):\n"])
def test_a_prompt_alone_defines_what_its_test_may_use(prompt):
    names = {}
    exec(definitions(prompt), names)
    assert names["root"](4) is None and names.get("helper", lambda: 1)() == 1


def test_a_fence_that_closes_is_told_from_one_that_opens():
    assert code_in("text ```python\nx\n``` more ```y```") == "x\n"
    assert code_in("    x = 1\n```\nThen:\n```\ny\n```") == "    x = 1\n"


def test_pass_at_k_is_the_share_of_subsets_with_a_pass():
    for samples, passed in [(5, 0), (5, 2), (6, 3), (4, 4)]:
        marks = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(marks, k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-9)
    assert 0 < pass_at_k(1000, 1, 100) < 0.1000001


@pytest.mark.parametrize("wrong", [(5, 2, 6), (5, 2, 0), (5, 6, 1), (5, -1, 1)])
def test_impossible_counts_are_refused(wrong):
    with pytest.raises(UserError, match="pass@"):
        pass_at_k(*wrong)
