"""Numeric arguments of the verbs, with their valid ranges."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any

from goat_jax.errors import UserError
from goat_jax.validation.fields import Range, checked, read_words

TOP_P = Annotated[float, Range(above=0, at_most=1)]
DEVICES = Annotated[int, Range(at_least=-1)]


def number(kind: Any) -> Callable[[str], Any]:
    """Returns a function for argparse that reads a number and checks its range.

    Args:
        kind: a type of `goat_jax.validation.fields`.

    >>> number(DEVICES)("-1")
    -1
    """

    def read(text: str) -> Any:
        try:
            value = checked("", read_words("", [text], kind), kind)
            if kind is DEVICES and value == 0:
                raise UserError("0 is not valid: give 1 or more, or -1 for all")
            return value
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None

    return read
