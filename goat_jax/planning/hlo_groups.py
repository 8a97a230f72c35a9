"""Groups of devices that exchange data in a collective, from its HLO text."""

from __future__ import annotations

import re

import numpy as np

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r"\s*\{([^}]*)\}"
)


def device_groups(line: str, devices: int) -> list[list[int]]:
    """Returns the groups of a collective, each a list of device numbers.

    HLO lists the groups, or writes them as a reshaped and transposed range of numbers, or names the
    axes of a mesh. A collective without groups is one of all devices.

    Args:
        line: the collective's line.
        devices: the number of devices of the program.

    >>> device_groups("all-gather(%x), replica_groups={{0,2},{1,3}}, dimensions={0}", 4)
    [[0, 2], [1, 3]]
    >>> device_groups("all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", 4)
    [[0, 2], [1, 3]]
    >>> device_groups("all-gather(%x), replica_groups=mesh['x'=2,'y'=2] {'x'}, dimensions={0}", 4)
    [[0, 2], [1, 3]]
    >>> device_groups("all-reduce(%x), replica_groups={}, to_apply=%add", 3)
    [[0, 1, 2]]
    """
    listed, iota, mesh = (form.search(line) for form in (_LISTED, _IOTA, _MESH))
    if listed:
        return [_numbers(group) for group in re.findall(r"\{([\d, ]*)\}", listed[1])]
    if iota:
        shape, source, order = (_numbers(each or "") for each in iota.groups())
        return _iota(source, order).reshape(shape).tolist()
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        within = re.findall(r"'([^']*)'", mesh[4])
        order = [name for name in sizes if name not in within] + within
        source = _numbers(mesh[2]) if mesh[2] else list(sizes.values())
        grid = _iota(source, _numbers(mesh[3] or "")).reshape(list(sizes.values()))
        moved = grid.transpose([list(sizes).index(name) for name in order])
        return moved.reshape(-1, int(np.prod([sizes[name] for name in within]))).tolist()
    return [list(range(devices))]


def _iota(shape: list[int], order: list[int]) -> np.ndarray:
    """Returns the numbers 0, 1, ... in an array of a shape, transposed if an order is given."""
    return np.arange(np.prod(shape)).reshape(shape).transpose(order or range(len(shape)))


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each.strip()]
