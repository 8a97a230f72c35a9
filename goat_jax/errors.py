"""Errors and notices for people: each is one line that names the thing and, if any, the fix."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Raised where the user gave something that cannot work; the command line prints it, exit 2.

    >>> raise UserError("rank 7 is not divisible by 2 experts: choose a multiple of 2")
    Traceback (most recent call last):
    goat_jax.errors.UserError: rank 7 is not divisible by 2 experts: choose a multiple of 2
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name most like this one, or nothing.

    >>> nearest("batchsize", ["batch_size", "seed"])
    " (did you mean 'batch_size'?)"
    """
    match = nearest_name(name, known)
    return f" (did you mean {match!r}?)" if match else ""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most like this one, if any is.

    Like it are a name of the same letters, one that it abbreviates by the initials of its words,
    one that has it as a word, and one that differs by few letters.

    >>> nearest_name("lr", ["clip", "learning_rate"]), nearest_name("rank", ["rho", "total_rank"])
    ('learning_rate', 'total_rank')
    """
    wanted, names = _words(name), list(known)
    letters = "".join(wanted)
    tests = (
        lambda own: "".join(own) == letters,
        lambda own: len(own) > 1 and "".join(word[:1] for word in own) == letters,
        lambda own: bool(letters) and letters in own,
    )
    found = [one for fits in tests for one in names if fits(_words(one))]
    matches = found or difflib.get_close_matches(name, names, n=1)
    return matches[0] if matches else None


def _words(name: str) -> list[str]:
    return name.lower().replace("-", "_").replace(".", "_").split("_")


class RunFailed(RuntimeError):
    """A run that had to stop, with what happened and what was saved in one line; exit 1."""


class Notice(UserWarning):
    """Warning that a person has to know about; the command line prints its one line alone."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's exception says, for a one-line message of ours.

    >>> first_line(ValueError("no such column"))
    'no such column'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
