"""Reads text fields: a column's value is text, or the row is rejected.

Other values (null, NaN, a list, an object) are never converted with `str`, since the model would be
trained on the printed form. Only templates accept an integer, which has one spelling.
"""

import reprlib
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from goat_jax.errors import UserError

Row = Mapping[str, Any]


def read_text(row: Row, column: str, default: str | None = None) -> str:
    """Returns the text in a column.

    Args:
      row: the row.
      column: the column's name.
      default: the text to use if the column is missing or null; None: such a row is rejected.

    Raises UserError if the value is not text that UTF-8 can encode.

    >>> read_text({"prompt": "2 + 2"}, "prompt"), read_text({"input": None}, "input", default="")
    ('2 + 2', '')
    >>> read_text({"prompt": float("nan")}, "prompt")
    Traceback (most recent call last):
    goat_jax.errors.UserError: column 'prompt' holds nan, not text
    """
    value = row.get(column)
    if value is None:
        if default is not None:
            return default
        raise UserError(f"no text in column {column!r} (the row has {', '.join(map(str, row))})")
    return check_text(value, f"column {column!r}")


def check_text(value: object, what: str, whole_numbers: bool = False) -> str:
    """Returns the value if it is text that UTF-8 can encode; raises UserError otherwise.

    Args:
      value: the value to check.
      what: a description of where the value is, for the error message.
      whole_numbers: whether an integer is accepted, too, and returned as its digits.

    >>> check_text(4, "column 'answer'", whole_numbers=True)
    '4'
    """
    if whole_numbers and isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        raise UserError(f"{what} holds {shown(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise UserError(
            f"{what} holds half of a character ({half!r}, a lone surrogate): correct the text"
        ) from None
    return value


def shown(value: object) -> str:
    """Formats a value for an error message: shortened, with JSON's null, true and false.

    >>> shown(None), shown([{"type": "text"}])
    ('null', "[{'type': 'text'}]")
    """
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else reprlib.repr(value)
