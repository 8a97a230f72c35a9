"""The parts of methods by the names that config files and command lines give them.

A part names itself: ``@part("router", "top_k")`` above its class. Its fields are options, and have
defaults, so that the name alone makes one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from goat_jax.validation.checks import check_choice

REGISTRY: dict[str, dict[str, type]] = {}
"""Kind of a part (a field of `AdapterSpec`) -> name -> its class."""

Class = TypeVar("Class", bound=type)


def part(kind: str, name: str) -> Callable[[Class], Class]:
    """Gives a part its name; a decorator of the part's class.

    Args:
        kind: the field of `AdapterSpec` that holds such parts.
        name: unique among the parts of its kind.
    """

    def add(cls: Class) -> Class:
        named = REGISTRY.setdefault(kind, {})
        if name in named:
            raise ValueError(f"two parts of kind {kind} are named {name}")
        named[name] = cls
        return cls

    return add


def find_part(kind: str, value: Any) -> Any:
    """The part that a name stands for, with its default options; a part stands for itself.

    Raises:
        UserError: an unknown name, naming all that are known, or something that is no such part.

    >>> import goat_jax.adapters.parts.scales
    >>> find_part("scale", "alpha_over_rank")
    AlphaOverRank()
    """
    named = REGISTRY[kind]
    is_part = dataclasses.is_dataclass(value) and not isinstance(value, type)
    other_kind = next((k for k, of in REGISTRY.items() if type(value) in of.values()), kind)
    if not is_part or (type(value) not in named.values() and other_kind != kind):
        check_choice(kind, value, named)
        return named[str(value)]()
    return value


def find_function(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """The function that a name stands for; a function stands for itself.

    Raises:
        UserError: an unknown name, naming all that are known, or something that is no function.
    """
    if callable(value):
        return value
    check_choice(name, value, known)
    return known[value]
