"""Tiers of a grid's cases: those that CI runs, and those that only the nightly tier runs."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def each(cases: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Cases as pytest parameters: CI runs every one, the quick tier only those of `quick`."""
    quick = list(quick)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def first_of_each(
    cases: Iterable[Any],
    parts: Callable[[Any], Iterable[Hashable]],
    first: Iterable[Any] = (),
    marks: Iterable[pytest.MarkDecorator] = (pytest.mark.slow,),
) -> list[Any]:
    """Cases as pytest parameters: CI runs those that together have every part, the night the rest.

    Args:
        cases: the values of one parameter, in the order in which they are chosen.
        parts: the parts of a case that the test can find broken.
        first: cases that are chosen before the others and get no mark.
        marks: the marks of the others.
    """
    first = list(first)
    met = {part for case in first for part in parts(case)}
    found = []
    for case in cases:
        if case in first:
            found.append(case)
            continue
        nightly = () if set(parts(case)) - met else (pytest.mark.nightly,)
        found.append(pytest.param(case, marks=(*marks, *nightly)))
        met |= set(parts(case))
    return found
