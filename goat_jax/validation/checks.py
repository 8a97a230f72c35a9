"""Checks of single values from users: numbers within a range, words among the known ones."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from goat_jax.errors import UserError, nearest


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raises `UserError` unless a value is a finite number within a range.

    Args:
        name: the field's name as a user types it.
        value: the value, of any type.
        at_least: the smallest valid number.
        above: an exclusive lower limit.
        at_most: the largest valid number.
        below: an exclusive upper limit.
        whole: whether the number must be an integer.
        optional: whether None is valid.

    Raises:
        UserError: the value is not valid; the error names the field, the value and the range.

    >>> check_number("train.steps", 10, at_least=1, whole=True)
    >>> check_number("beta1", float("nan"), at_least=0, below=1)
    Traceback (most recent call last):
    goat_jax.errors.UserError: beta1 nan is not valid: give a number of at least 0 and below 1
    """
    if optional and value is None:
        return
    kind = numbers.Integral if whole else numbers.Real
    # bool is a subclass of int, but True is not a count. NaN fails every comparison: test it first.
    if isinstance(value, kind) and not isinstance(value, bool) and _is_finite(value):
        limits = (
            (at_least, lambda limit: value >= limit),
            (above, lambda limit: value > limit),
            (at_most, lambda limit: value <= limit),
            (below, lambda limit: value < limit),
        )
        if all(limit is None or holds(limit) for limit, holds in limits):
            return
    words = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
    bounds = " and ".join(
        f"{word} {limit if isinstance(limit, int) else f'{limit:g}'}"
        for word, limit in words
        if limit is not None
    )
    noun = "a whole number" if whole else "a number"
    link = "" if not bounds else f" of {bounds}" if at_least is not None else f" {bounds}"
    raise UserError(f"{name} {value!r} is not valid: give {noun}{link}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raises `UserError` unless a value is one of the known words.

    Args:
        name: the field's name as a user types it.
        value: the value, of any type.
        known: the valid words.

    Raises:
        UserError: the value is not known; the error names the field, the value and known words.

    >>> check_choice("model.dtype", "float16", ["float32", "bfloat16"])
    Traceback (most recent call last):
    goat_jax.errors.UserError: model.dtype 'float16' is not known (did you mean 'bfloat16'?): \
give one of float32, bfloat16
    """
    words = list(known)
    if not isinstance(value, str) or value not in words:
        hint = nearest(value, words) if isinstance(value, str) else ""
        raise UserError(f"{name} {value!r} is not known{hint}: give one of {', '.join(words)}")
