"""Short lists of modules: the shortest suffixes and names that select exactly the given ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def shortest_suffixes(chosen: Sequence[str], every: Collection[str]) -> list[str]:
    """Returns the shortest suffixes that match the chosen names and no others.

    >>> every = ["layer.0.attention.output.dense", "layer.0.query", "classifier.dense"]
    >>> shortest_suffixes(every[:2], every)
    ['output.dense', 'query']
    """
    others = [name for name in every if name not in set(chosen)]
    shortest: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        suffixes = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        clear = [s for s in suffixes if not any(f".{o}".endswith(f".{s}") for o in others)]
        shortest[clear[0] if clear else name] = None
    return list(shortest)


def whole_modules(parts: Sequence[str], every: Collection[str]) -> list[str]:
    """Replaces the modules of a completely chosen top-level module by its name.

    >>> every = ["bert.pooler.dense", "bert.norm", "classifier.dense", "classifier.out_proj"]
    >>> whole_modules(["bert.pooler.dense", "classifier.dense", "classifier.out_proj"], every)
    ['bert.pooler.dense', 'classifier']
    """
    names_kept: dict[str, None] = {}
    for name in parts:
        top = name.partition(".")[0]
        inside = [other for other in every if other.partition(".")[0] == top]
        names_kept[top if set(inside) <= set(parts) else name] = None
    return list(names_kept)


def most_common(values: Sequence[Any]) -> Any:
    """Returns the most common value; of equally common ones, the first."""
    return max(values, key=list(values).count)
