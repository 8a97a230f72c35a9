"""Collectives of a compiled program, counted in its HLO text as often as they run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from goat_jax.planning.hlo_groups import device_groups
from goat_jax.planning.hlo_trip_counts import trips

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
"""HLO operations in which devices exchange data."""

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}
"""Element type -> its size in bits; all other types (such as float8) have 8."""

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>\(.*?\)|\S+) (?P<op>[\w-]+)\(")
_HEAD = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) .*\{\s*$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|%?([\w.-]+))"
)
_LAYOUT = re.compile(r"\{[^}]*\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Total of one kind of collective in a program.

    Attributes:
        count: the number of times that it runs.
        bytes: the sum over these times of the array bytes on one device. An asynchronous
            collective counts the larger of its operand and result.
        network_bytes: the least that one device must receive from other nodes; see `collectives`.
    """

    count: int
    bytes: int
    network_bytes: int = 0


def collectives(text: str, nodes: Sequence[int] = (0,)) -> dict[str, Exchange]:
    """Counts the collectives of one execution of a compiled program, from its HLO text.

    Loop bodies count as often as they run (`hlo_trip_counts.trips`). The TPU compiler may split
    one collective into several fusions that share a channel id; it counts once. A collective
    between n nodes brings at least (n - 1) / n of its bytes into each of them, evenly over the
    network adapters of its devices there.

    Args:
        text: the program.
        nodes: the node of each device, in the program's order of devices.

    >>> text = '''ENTRY %main (x: f32[2]) -> f32[8] {
    ...   ROOT %g = f32[8]{0} all-gather(%x), dimensions={0}
    ... }'''
    >>> collectives(text)
    {'all-gather': Exchange(count=1, bytes=32, network_bytes=0)}
    """
    computations, entry = _computations(text)
    totals: dict[str, list[float]] = {}
    spread: set[str] = set()
    for name, times in _runs(computations, entry):
        for operation, size, channel, line in _own(computations[name]):
            if channel and "fus" in name and channel in spread:
                continue
            spread.add(channel)
            kind = totals.setdefault(operation, [0, 0, 0])
            for place, value in enumerate((1, size, size * _network_share(line, nodes))):
                kind[place] += times * value
    return {name: Exchange(*map(int, totals[name])) for name in COLLECTIVES if name in totals}


def _network_share(line: str, nodes: Sequence[int]) -> float:
    """Returns the part of a collective's bytes that one device receives from other nodes."""
    if len(set(nodes)) == 1:
        return 0.0
    shares = [0.0]
    for group in device_groups(line, len(nodes)):
        touched = len({nodes[device] for device in group})
        shares.append((touched - 1) / len(group))  # (n - 1) / n over the group's devices per node
    return max(shares)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the entry computation's name."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head:
            current = computations.setdefault(head["name"], [])
            entry = head["name"] if line.startswith("ENTRY") else entry
        elif current is not None:
            current.append(line)
    return computations, entry


def _runs(computations: Mapping[str, list[str]], entry: str) -> Iterator[tuple[str, int]]:
    """Yields every call of a computation, as (name, number of times that it runs)."""
    pending = [(entry, 1)]
    while pending:
        name, times = pending.pop()
        yield name, times
        for line in computations[name]:
            inner = times * trips(computations, name, line) if " while(" in line else times
            for several, one in _CALLED.findall(line):
                for called in (several or one).split(","):
                    called = called.strip("% ")
                    if called in computations:
                        pending.append((called, inner))


def _own(lines: list[str]) -> Iterator[tuple[str, int, str, str]]:
    """Yields the collectives in a computation's lines, as (kind, bytes, channel, line)."""
    for line in lines:
        match = _OPERATION.match(line)
        operation = match["op"].removesuffix("-start") if match else ""
        if match and operation in COLLECTIVES:
            channel = _CHANNEL.search(line)
            yield operation, _size(match["op"], match["type"]), channel[1] if channel else "", line


def _size(operation: str, type_: str) -> int:
    """Returns the bytes of a collective's results; a combined one has several, which add up.

    The type of an asynchronous start also holds the operands, but for all-reduce, where operands
    and results are one. The larger of the two counts.
    """
    type_ = _LAYOUT.sub("", type_)
    tuples = re.findall(r"\([^()]*\)", type_) or [type_]
    sums = [sum(_array_bytes(each)) for each in tuples]
    if not operation.endswith("-start") or operation.startswith("all-reduce") or len(tuples) > 1:
        return max(sums)
    return max(_array_bytes(type_))


def _array_bytes(type_: str) -> list[int]:
    return [_bytes(*array) for array in _ARRAY.findall(type_)]


def _bytes(kind: str, shape: str) -> int:
    size = 1
    for axis in filter(None, shape.split(",")):
        size *= int(axis)
    return size * BITS.get(kind, 8) // 8
