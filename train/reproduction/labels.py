"""Words of ``train/paper.py``: rows with their options, and options of the table's parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from goat_jax.adapters.methods import method_spec
from goat_jax.config.files import parse_options
from goat_jax.errors import UserError, nearest

LONGEST = 100
"""Largest number of characters of a label in a folder name; a longer label is truncated and ends in
its hash."""


@dataclasses.dataclass(frozen=True)
class Label:
    """A method as given on the command line: ``METHOD[@RANK][:OPTION=VALUE,...]``.

    Attributes:
        text: the text as given, which names the row in the table.
        method: the method's name in `METHODS`.
        rank: the total rank; None for the table's.
        adapter: fields and options of the adapter, which override the config file.
    """

    text: str
    method: str
    rank: int | None
    adapter: Mapping[str, Any]

    @property
    def options(self) -> str:
        """Options of the config file.

        >>> read_label("goat@16:rho=5").options
        'method=goat,rank=16'
        """
        return f"method={self.method}" + (f",rank={self.rank}" if self.rank else "")

    @property
    def name(self) -> str:
        """The label in a form that can be part of a folder name.

        >>> read_label("goat@16:rho=5").name
        'goat-rank16-rho-5'
        """
        name = re.sub(r"[^\w.+-]", "-", self.text.replace("@", "-rank"))
        if len(name) <= LONGEST:
            return name
        return f"{name[:LONGEST]}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"


def read_label(text: str) -> Label:
    """Reads a method and its options.

    Raises:
        UserError: an unknown method, a rank that is not a whole number, an option without a value.

    >>> read_label("goat@16:rho=5").adapter
    {'rho': 5}
    """
    head, _, rest = text.partition(":")
    method, at, rank = head.partition("@")
    method_spec(method)
    if at and not re.fullmatch(r"[1-9][0-9]{0,6}", rank):
        raise UserError(f"{text}: rank {rank!r} is not a whole number above 0 (METHOD@RANK)")
    return Label(text, method, int(rank) if at else None, parse_options(rest))


def options_by_part(given: Iterable[str], parts: Mapping[str, str]) -> dict[str, str]:
    """Returns the options of the config file for every part of a table.

    Args:
        given: texts of the form ``OPTION=VALUE,...`` for all parts, or ``NAME:OPTION=VALUE,...``
            for one part or for all parts of one group.
        parts: the names of the table's parts -> their groups.

    Raises:
        UserError: a name that is neither a part nor a group.

    >>> given = ["math:folder=a", "glue:folder=b", "rte:folder=c", "batch=8"]
    >>> options_by_part(given, {"math": "math", "rte": "glue", "cola": "glue"})
    {'math': 'batch=8,folder=a', 'rte': 'batch=8,folder=c', 'cola': 'batch=8,folder=b'}
    """
    known = {*parts, *parts.values()}
    named: dict[str, list[str]] = {name: [] for name in ("", *known)}
    for text in filter(None, given):
        name, colon, options = text.partition(":")
        if not colon or "=" in name:
            named[""].append(text)
        elif name in named:
            named[name].append(options)
        else:
            raise UserError(
                f"--options {text}: the table has no part {name!r}{nearest(name, parts)}: "
                f"its parts are: {', '.join(sorted(known))}"
            )
    return {
        part: _merged(*(",".join(named[name]) for name in dict.fromkeys(("", group, part))))
        for part, group in parts.items()
    }


def _merged(*options: str) -> str:
    """Joins options into one text; later ones replace those before.

    >>> _merged("batch=8,folder=a", "folder=b")
    'batch=8,folder=b'
    """
    values = {name: value for text in options for name, value in parse_options(text).items()}
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items())
