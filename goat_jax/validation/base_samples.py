"""Samples of a base model's weights, by which an adapter knows the base that it was trained on."""

import math
from collections.abc import Mapping, Sequence

COUNT = 4
"""Number of samples of one weight; four zeros stand for a weight that cannot be read."""

ALLOWED = 2**-8
"""Relative difference of a base in another dtype: the rounding of bfloat16."""


def places(rows: int, columns: int) -> list[tuple[int, int]]:
    """Returns the (row, column) of the samples of a weight, spread over it.

    >>> places(8, 16)
    [(1, 6), (3, 2), (5, 14), (7, 10)]
    """
    halves = 2 * COUNT
    return [(n * rows // halves, n * 3 % halves * columns // halves) for n in range(1, halves, 2)]


def difference(
    stored: Mapping[str, Sequence[float]], found: Mapping[str, Sequence[float]]
) -> float:
    """Returns the relative difference of two bases' samples, by weight, of those that both have.

    >>> difference({"a": [3, 0, 0, 4], "b": [1, 1, 1, 1]}, {"a": [3, 0, 1, 4], "b": [0, 0, 0, 0]})
    0.2
    """
    pairs = [(stored[name], found[name]) for name in stored.keys() & found.keys()]
    pairs = [(one, other) for one, other in pairs if any(one) and any(other)]
    distance = math.hypot(*(math.dist(one, other) for one, other in pairs))
    return distance / math.hypot(*(x for one, _ in pairs for x in one)) if pairs else 0.0


def other_base(
    stored: Mapping[str, Sequence[float]], found: Mapping[str, Sequence[float]]
) -> str | None:
    """Describes how the base model is another one than an adapter's, or returns None.

    Args:
        stored: weight -> its samples in the adapter's base.
        found: weight -> its samples in the base model.
    """
    far = difference(stored, found)
    if far <= ALLOWED:
        return None
    return f"it was trained on another base model, whose weights differ from these by {far:.1%}"
