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
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


class RunFailed(RuntimeError):
    """A run that had to stop, with what happened and what was saved in one line; exit 1."""


class Notice(UserWarning):
    """Warning that a person has to know about; the command line prints its one line alone."""
