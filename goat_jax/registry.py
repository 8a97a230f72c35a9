"""Registry of the parts of methods, by the names used in config files and command lines.

A part registers itself by ``@part("router", "top_k")`` above its class. Its fields are options with
defaults, so that the name alone is enough to make the part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from goat_jax.validation.checks import check_choice
from goat_jax.validation.records import is_record

REGISTRY: dict[str, dict[str, type]] = {}
"""Classes of parts by kind (a field of `AdapterSpec`), then by name."""

Class = TypeVar("Class", bound=type)


def part(kind: str, name: str) -> Callable[[Class], Class]:
    """Returns a class decorator that registers a part under a name.

    Args:
        kind: the field of `AdapterSpec` that holds such parts.
        name: the part's name, unique among the parts of its kind.
    """

    def add(cls: Class) -> Class:
        named = REGISTRY.setdefault(kind, {})
        if name in named:
            raise ValueError(f"two parts of kind {kind} are named {name}")
        named[name] = cls
        return cls

    return add


def find_part(kind: str, value: object) -> Any:
    """Returns the part of a name, with its default options; a part is returned unchanged.

    Args:
        kind: the field of `AdapterSpec` that holds the part.
        value: a name or a part.

    Raises:
        UserError: an unknown name (the error lists the known ones), a part of another kind, or a
            value that is neither.

    >>> import goat_jax.adapters.parts.scales
    >>> find_part("scale", "alpha_over_rank")
    AlphaOverRank()
    """
    named = REGISTRY[kind]
    is_part = is_record(value)
    other_kind = next((k for k, of in REGISTRY.items() if type(value) in of.values()), kind)
    if not is_part or (type(value) not in named.values() and other_kind != kind):
        check_choice(kind, value, named)
        return named[str(value)]()
    return value


def find_function(name: str, value: object, known: Mapping[str, Any]) -> Any:
    """Returns the function of a name; a function is returned unchanged.

    Args:
        name: the option, for errors.
        value: a name or a function.
        known: the functions by name.

    Raises:
        UserError: an unknown name (the error lists the known ones), or a value that is neither.
    """
    if callable(value):
        return value
    check_choice(name, value, known)
    return known[str(value)]
