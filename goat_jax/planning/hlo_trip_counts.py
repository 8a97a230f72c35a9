"""Trip counts of the loops in a compiled program.

Some compilers write the trip count into the HLO (``known_trip_count``). The TPU compiler leaves
only a counter in the loop's tuple: the condition compares it with a constant, and the body adds a
constant to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Program = Mapping[str, Sequence[str]]
"""Computation -> its lines."""

_KNOWN = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
_PLACE = re.compile(r" get-tuple-element\(.*index=(\d+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")


def trips(program: Program, caller: str, line: str) -> int:
    """Returns the trip count of a ``while``; 1 if its counter cannot be parsed.

    Args:
        program: the program's computations.
        caller: the computation that contains the ``while``.
        line: the line of the ``while``.

    >>> program = {
    ...     "cond": ["%n = s32[] constant(8)", "%i = s32[] get-tuple-element(%p), index=0",
    ...              "ROOT %c = pred[] compare(%i, %n), direction=LT"],
    ...     "body": ["%i = s32[] get-tuple-element(%p), index=0", "%two = s32[] constant(2)",
    ...              "%j = s32[] add(%i, %two)", "ROOT %t = (s32[]) tuple(%j)"],
    ...     "main": ["%z = s32[] constant(0)", "%s = (s32[]) tuple(%z)"]}
    >>> trips(program, "main", "%w = (s32[]) while(%s), condition=%cond, body=%body")
    4
    """
    known = _KNOWN.search(line)
    if known:
        return int(known[1])
    condition, body = (program[_named(line, key)] for key in ("condition", "body"))
    start = _operands(_definition(program[caller], _operands(line)[0]))
    handed = [_constant(program[caller], name, ()) for name in start]
    test = _root(condition)
    if "direction=LT" not in test:
        return 1
    counter, limit = _operands(test)
    place = _PLACE.search(_definition(condition, counter))
    end = _constant(condition, limit, handed)
    if place is None or end is None:
        return 1
    step = _step(body, int(place[1]), handed)
    return max(1, -(-(end - (handed[int(place[1])] or 0)) // step))


def _step(body: Sequence[str], place: int, handed: Sequence[int | None]) -> int:
    """Returns the constant that the body adds to the tuple's counter; 1 if it cannot be parsed."""
    following = _definition(body, _operands(_root(body))[place])
    for name in _operands(following) if " add(" in following else ():
        counter = _PLACE.search(_definition(body, name))
        if counter is None or int(counter[1]) != place:
            return _constant(body, name, handed) or 1
    return 1


def _constant(lines: Sequence[str], name: str, handed: Sequence[int | None]) -> int | None:
    """Returns the value of a name; None if it is not known.

    Args:
        lines: the lines of the computation.
        name: the name of a constant, of a copy of one, or of an element of the loop's tuple.
        handed: the known initial values of the loop's tuple.
    """
    definition = _definition(lines, name)
    constant, place = _CONSTANT.search(definition), _PLACE.search(definition)
    if constant:
        return int(constant[1])
    if place:
        return handed[int(place[1])] if int(place[1]) < len(handed) else None
    if " copy(" in definition:
        return _constant(lines, _operands(definition)[0], handed)
    return None


def _named(line: str, key: str) -> str:
    match = re.search(rf"\b{key}=%?([\w.-]+)", line)
    return match[1] if match else ""


def _operands(definition: str) -> list[str]:
    """Returns the names of an operation's operands."""
    match = re.search(r" [\w-]+\(([^()]*)\)", definition.partition(" = ")[2])
    return re.findall(r"%([\w.-]+)", match[1]) if match else []


def _definition(lines: Sequence[str], name: str) -> str:
    start = re.compile(rf"\s*(?:ROOT )?%?{re.escape(name)} = ")
    return next((line for line in lines if start.match(line)), "")


def _root(lines: Sequence[str]) -> str:
    return next((line for line in lines if line.lstrip().startswith("ROOT ")), "")
