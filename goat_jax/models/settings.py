"""`Setting`: what only some families of a kind have, read from a config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from goat_jax.errors import UserError
from goat_jax.models.config_keys import Check, switch

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Fields of a config that only some families have.

    Attributes:
        keys: the keys of config.json that it reads, with their checks.
        fields: function from config.json and the fields so far to its fields.
    """

    keys: Mapping[str, Check]
    fields: Callable[[Mapping[str, Any], Fields], Fields]


def always(**fields: Any) -> Setting:
    """Returns the setting of fields that have the same values in every checkpoint."""
    return Setting({}, lambda hf, values: dict(fields))


def flag(key: str, *fields: str, default: bool = False) -> Setting:
    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        given = hf.get(key)
        return dict.fromkeys(fields, default if given is None else given)

    return Setting({key: switch}, read)


def check_layers(key: str, given: Sequence[Any], layers: int) -> None:
    """Raises `UserError` unless a list has an entry for every layer."""
    if len(given) != layers:
        raise UserError(
            f"config.json: {key} has {len(given)} entries for {layers} layers: give one each"
        )


def layer_types(key: str, value: Any) -> None:
    known = ("full_attention", "sliding_attention")
    if not isinstance(value, list | tuple) or any(kind not in known for kind in value):
        raise UserError(
            f"config.json: {key} is {value!r}: it must be a list of {' and '.join(known)}"
        )
