"""Errors and notices for users: each is one line that names the cause and, if any, the fix."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Error for invalid user input; the command line prints its one line and exits with code 2.

    >>> raise UserError("rank 7 is not divisible by 2 experts: choose a multiple of 2")
    Traceback (most recent call last):
    goat_jax.errors.UserError: rank 7 is not divisible by 2 experts: choose a multiple of 2
    """


class UnknownField(UserError):
    """Error for a name that is not a field of a config.

    Attributes:
        name: the name as it was given, with its group if it had one.
        meant: the dotted name of the field that was probably meant, or None.
        config: the config that has no such field.
    """

    def __init__(self, name: str, meant: str | None, config: Any) -> None:
        self.name, self.meant, self.config = name, meant, config
        hint = f" (did you mean {meant!r}?)" if meant else ""
        super().__init__(
            f"the config has no field {name!r}{hint}: goat-jax train --config FILE "
            "--help-fields lists them"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the most similar known name, or an empty string.

    >>> nearest("batchsize", ["batch_size", "seed"])
    " (did you mean 'batch_size'?)"
    """
    match = nearest_name(name, known)
    return f" (did you mean {match!r}?)" if match else ""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Returns the most similar known name, or None if none is similar.

    The first match counts: a name with the same letters, a name whose initials it spells, a name
    that contains it as a word, a name that differs by few letters.

    >>> nearest_name("lr", ["steps", "learning_rate"]), nearest_name("rank", ["rho", "total_rank"])
    ('learning_rate', 'total_rank')
    """
    name_words, names = _words(name), list(known)
    letters = "".join(name_words)
    tests = (
        lambda words: "".join(words) == letters,
        lambda words: len(words) > 1 and "".join(word[:1] for word in words) == letters,
        lambda words: bool(letters) and letters in words,
    )
    similar = [one for fits in tests for one in names if fits(_words(one))]
    matches = similar or difflib.get_close_matches(name, names, n=1)
    return matches[0] if matches else None


def _words(name: str) -> list[str]:
    return name.lower().replace("-", "_").replace(".", "_").split("_")


class RunFailed(RuntimeError):
    """Error of a run that had to stop: one line with the cause and what was saved; exit code 1."""


class Notice(UserWarning):
    """Warning that the user needs to see; the command line prints only its one line."""


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error message, for use in a one-line message.

    >>> first_line(ValueError("no such column"))
    'no such column'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
