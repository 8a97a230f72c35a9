"""``goat-jax methods``."""

from __future__ import annotations

import dataclasses
from typing import Any

from goat_jax.adapters.methods import METHODS
from goat_jax.adapters.spec import PARTS
from goat_jax.tables import render_table


def methods() -> int:
    """Prints the method table."""
    rows = []
    for name, method in METHODS.items():
        parts = [describe_part(getattr(method.spec, part)) for part in PARTS]
        rows.append([name, *parts, method.source])
    print(render_table(["method", *PARTS, "source"], rows))
    return 0


def describe_part(part: Any) -> str:
    """A part in few words: its class, and the options it has.

    >>> from goat_jax.adapters.scales import Theory
    >>> describe_part(Theory(eta=0.1))
    'Theory(eta=0.1)'
    """
    options = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        shown = describe_part(value) if dataclasses.is_dataclass(value) else value
        options.append(f"{field.name}={getattr(shown, '__name__', shown)}")
    name = type(part).__name__
    return f"{name}({', '.join(options)})" if options else name
