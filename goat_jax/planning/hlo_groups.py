"""Groups of devices that exchange data in a collective, from its HLO text."""

from __future__ import annotations

import re

import numpy as np

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def device_groups(line: str, devices: int) -> list[list[int]]:
    """Returns the groups of a collective, each a list of device numbers.

    HLO lists the groups, or writes them as a reshaped and transposed range of numbers. A collective
    without groups is one of all devices.

    Args:
        line: the collective's line.
        devices: the number of devices of the program.

    >>> device_groups("all-gather(%x), replica_groups={{0,2},{1,3}}, dimensions={0}", 4)
    [[0, 2], [1, 3]]
    >>> device_groups("all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", 4)
    [[0, 2], [1, 3]]
    >>> device_groups("all-reduce(%x), replica_groups={}, to_apply=%add", 3)
    [[0, 1, 2]]
    """
    listed, iota = _LISTED.search(line), _IOTA.search(line)
    if listed:
        return [_numbers(group) for group in re.findall(r"\{([\d, ]*)\}", listed[1])]
    if iota:
        shape, source, order = (_numbers(each or "") for each in iota.groups())
        numbers = np.arange(np.prod(source)).reshape(source)
        return numbers.transpose(order or None).reshape(shape).tolist()
    return [list(range(devices))]


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each.strip()]
