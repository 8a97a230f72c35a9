"""Extracts programs from a model's answers and computes pass@k."""

import re
import textwrap
import warnings
from collections.abc import Iterator

from goat_jax.errors import UserError

FENCE = "```"
# A base model does not stop at the end of the function: these lines begin the text after it.
ENDINGS = re.compile(r"^(?:class |def |async def |@|if |print\(|#|assert |from |import )", re.M)


def code_in(text: str) -> str:
    r"""Returns the first block of code in an answer, or the text before a closing fence.

    >>> code_in("Here it is:\n```python\nx = 1\n```\nIt sets x.")
    'x = 1\n'
    >>> code_in("    return 1\n```\nDone.")
    '    return 1\n'
    """
    before, fence, after = text.partition(FENCE)
    if not fence:
        return text
    language, newline, rest = after.partition("\n")
    if not newline or not re.fullmatch(r"\w*\s*", language):
        return before
    opened = language.strip() or not _looks_like_code(before)
    return rest.partition(FENCE)[0] if opened else before


def _looks_like_code(text: str) -> bool:
    """True if the text before a fence is already code, so that the fence closes it."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or lines[0][0].isspace():
        return bool(lines)
    return re.search(r"=|\b(?:def|return|import|class)\b", text) is not None and _compiles(text)


def solution(prompt: str, entry_point: str, answer: str) -> str:
    r"""Builds the program of an answer: its definition of the function, or the prompt continued.

    Text after the function that is not valid Python is removed. The indentation is restored if the
    answer lost it in its first line or in all lines.

    Args:
      prompt: the beginning of a program, ending in the function's signature and docstring.
      entry_point: the function's name.
      answer: the model's answer.

    >>> solution("def one():\n", "one", "return 1\n\nprint(one())")
    'def one():\n    return 1\n'
    """
    code = code_in(answer)
    definition = re.compile(rf"^[ \t]*(?:async )?def {re.escape(entry_point)}\b", re.M)
    if definition.search(code):
        return prompt + "\n\n" + _longest_program(textwrap.dedent(code).strip("\n"))
    body = code
    cut = ENDINGS.search(body, len(body) - len(body.lstrip("\n")) + 1)
    body = body[: cut.start()] if cut else body
    for candidate in _indented(body):
        if _compiles(prompt + candidate):
            return prompt + candidate.rstrip() + "\n"
    return prompt + code


def _indented(body: str) -> Iterator[str]:
    """Yields a function's body unchanged, then with its indentation restored."""
    yield body
    yield "    " + body.lstrip()
    yield textwrap.indent(textwrap.dedent(body), "    ")


def _longest_program(code: str) -> str:
    """Returns the longest run of leading lines that compiles; all lines if none does."""
    lines = code.splitlines()
    for count in range(len(lines), 0, -1):
        part = "\n".join(lines[:count])
        if _compiles(part):
            return part + "\n"
    return code + "\n"


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's program may draw SyntaxWarnings
            compile(code, "answer", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def definitions(prompt: str) -> str:
    r"""Completes a question's prompt to a program whose unfinished function does nothing.

    >>> definitions("import math\n\ndef one():\n")
    'import math\n\ndef one():\n\n    pass\n'
    """
    return prompt if _compiles(prompt) else f"{prompt}\n    pass\n"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Estimates without bias the probability that at least one of k samples passes.

    Computes 1 - C(n - c, k) / C(n, k) as a product that does not overflow (Chen et al. 2021, arXiv
    2107.03374, section 2.1).

    Args:
      samples: the number of samples, n.
      passed: the number of samples that passed, c.
      k: the number of samples to draw, at most `samples`.

    Raises:
      UserError: `k` or `passed` is out of its range.

    >>> pass_at_k(10, 3, 1), pass_at_k(5, 0, 5), pass_at_k(5, 1, 5)
    (0.3, 0.0, 1.0)
    """
    if not 1 <= k <= samples or not 0 <= passed <= samples:
        raise UserError(
            f"pass@{k} of {samples} samples, {passed} passed: k must be 1 to the number of samples"
        )
    if samples - passed < k:
        return 1.0
    failing = 1.0
    for number in range(samples - passed + 1, samples + 1):
        failing *= 1.0 - k / number
    return round(1.0 - failing, 12)
