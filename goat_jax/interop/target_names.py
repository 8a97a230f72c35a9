"""Lists of modules as people write them: the shortest suffixes that mean exactly these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any


def shortest_suffixes(chosen: Sequence[str], every: Collection[str]) -> list[str]:
    """Suffixes that match the chosen names and no other, each as short as it can be.

    >>> every = ["layer.0.attention.output.dense", "layer.0.query", "classifier.dense"]
    >>> shortest_suffixes(every[:2], every)
    ['output.dense', 'query']
    """
    others = [name for name in every if name not in set(chosen)]
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        suffixes = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        clear = [s for s in suffixes if not any(f".{o}".endswith(f".{s}") for o in others)]
        found[clear[0] if clear else name] = None
    return list(found)


def whole_modules(parts: Sequence[str], every: Collection[str]) -> list[str]:
    """The chosen modules, those of a top-level module that is chosen whole by its name.

    >>> every = ["bert.pooler.dense", "bert.norm", "classifier.dense", "classifier.out_proj"]
    >>> whole_modules(["bert.pooler.dense", "classifier.dense", "classifier.out_proj"], every)
    ['bert.pooler.dense', 'classifier']
    """
    found: dict[str, None] = {}
    for name in parts:
        top = name.partition(".")[0]
        inside = [other for other in every if other.partition(".")[0] == top]
        found[top if set(inside) <= set(parts) else name] = None
    return list(found)


def most_common(values: Sequence[Any]) -> Any:
    """The value that most have; the first of equals."""
    return Counter(values).most_common(1)[0][0]
