"""Reads the tokens that end a text from a checkpoint's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from goat_jax.errors import UserError
from goat_jax.files import read_json


def with_end_tokens(hf: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Adds the end tokens of generation_config.json to a config.json's `eos_token_id`.

    Raises:
        UserError: a damaged file, or a value that is not a token id.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return hf
    generation = read_json(file)
    if not isinstance(generation, dict):
        raise UserError(
            f"{file} holds a {type(generation).__name__}, not an object: fetch it again"
        )
    more = token_ids(generation, str(file))
    if not more:
        return hf
    both = (*token_ids(hf, str(folder / "config.json")), *more)
    return hf | {"eos_token_id": list(dict.fromkeys(both))}


def token_ids(config: Mapping[str, Any], where: str = "config.json") -> tuple[int, ...]:
    """Returns the tokens of a config's `eos_token_id`: one, a list, or none.

    Args:
        config: the config.
        where: the file's name, for the error message.

    Raises:
        UserError: a value that is not a token id.

    >>> token_ids({"eos_token_id": [2, 7]}), token_ids({"eos_token_id": 2}), token_ids({})
    ((2, 7), (2,), ())
    """
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(type(number) is int and number >= 0 for number in ids):
        raise UserError(f"{where}: eos_token_id is {value!r}: give a token id, or a list of them")
    return tuple(ids)
