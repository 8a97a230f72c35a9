"""Programs that a model wrote: cut out of its answer, and counted as pass@k."""

import re
import textwrap
import warnings
from collections.abc import Iterator

from goat_jax.errors import UserError

FENCE = "```"
# Where a model that only continues a function goes on to something else.
ENDINGS = re.compile(r"^(?:class |def |async def |@|if |print\(|#|assert |from |import )", re.M)


def code_in(text: str) -> str:
    r"""The first block of code in an answer, or what comes before a closing fence.

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
    """Whether text before a fence is code already, so that the fence closes it."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or lines[0][0].isspace():
        return bool(lines)
    return re.search(r"=|\b(?:def|return|import|class)\b", text) is not None and _compiles(text)


def solution(prompt: str, entry_point: str, answer: str) -> str:
    r"""The program of an answer: its own definition of the function, or the prompt continued.

    Whatever follows the function and is no program is cut off. An answer that has lost the
    indentation of its first line, or of all, gets it back.

    Args:
      prompt: the beginning of a program, ending in the function's signature and docstring.
      entry_point: the function's name.
      answer: what the model said.

    >>> solution("def one():\n", "one", "return 1\n\nprint(one())")
    'def one():\n    return 1\n'
    """
    code = code_in(answer)
    own = re.compile(rf"^[ \t]*(?:async )?def {re.escape(entry_point)}\b", re.M)
    if own.search(code):
        return prompt + "\n\n" + _longest_program(textwrap.dedent(code).strip("\n"))
    body = code
    cut = ENDINGS.search(body, len(body) - len(body.lstrip("\n")) + 1)
    body = body[: cut.start()] if cut else body
    for candidate in _indented(body):
        if _compiles(prompt + candidate):
            return prompt + candidate.rstrip() + "\n"
    return prompt + code


def _indented(body: str) -> Iterator[str]:
    """A function's body as it is, and with its indentation given back."""
    yield body
    yield "    " + body.lstrip()
    yield textwrap.indent(textwrap.dedent(body), "    ")


def _longest_program(code: str) -> str:
    """The most of the first lines that are a program; all of them if none are."""
    lines = code.splitlines()
    for count in range(len(lines), 0, -1):
        part = "\n".join(lines[:count])
        if _compiles(part):
            return part + "\n"
    return code + "\n"


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the program should better not do
            compile(code, "answer", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def definitions(prompt: str) -> str:
    r"""The prompt of a question as a program, whose unfinished function does nothing.

    >>> definitions("import math\n\ndef one():\n")
    'import math\n\ndef one():\n\n    pass\n'
    """
    return prompt if _compiles(prompt) else f"{prompt}\n    pass\n"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that one of k samples passes, estimated without bias from more of them.

    1 - C(n - c, k) / C(n, k), as a product that does not overflow (Chen et al. 2021, arXiv
    2107.03374, section 2.1).

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
