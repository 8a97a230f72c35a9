"""Arguments of the table programs: methods with their options, and options of the table's parts."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
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


def options_by_part(given: Iterable[str], parts: Sequence[str]) -> dict[str, str]:
    """Returns the options of the config file for every part of a table.

    Args:
        given: texts of the form ``OPTION=VALUE,...`` for all parts or ``PART:OPTION=VALUE,...`` for
            one part.
        parts: the names of the table's parts.

    Raises:
        UserError: a part that the table does not have.

    >>> given = ["math:folder=a", "code:folder=b", "batch=8"]
    >>> options_by_part(given, ["math", "code", "chat"])
    {'math': 'batch=8,folder=a', 'code': 'batch=8,folder=b', 'chat': 'batch=8'}
    """
    shared, own = [], {part: [] for part in parts}
    for text in filter(None, given):
        part, colon, options = text.partition(":")
        if not colon or "=" in part:
            shared.append(text)
        elif part in own:
            own[part].append(options)
        else:
            raise UserError(
                f"--options {text}: the table has no part {part!r}{nearest(part, parts)}: "
                f"its parts are: {', '.join(parts)}"
            )
    return {part: _merged(",".join(shared), ",".join(own[part])) for part in parts}


def _merged(shared: str, own: str) -> str:
    """Joins options into one text; those of a part replace the ones that all parts share.

    >>> _merged("batch=8,folder=a", "folder=b")
    'batch=8,folder=b'
    """
    values = parse_options(shared) | parse_options(own)
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items())


def add_arguments(parser: argparse.ArgumentParser, methods: Iterable[str], name: str) -> None:
    """Adds the arguments that all table programs have.

    Args:
        parser: the parser to add to.
        methods: the methods of the table's rows, which are the default.
        name: the name of the program and of the folder of its runs.
    """
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(methods),
        metavar="METHOD",
        help="one or more of METHOD, METHOD@RANK or METHOD@RANK:OPTION=VALUE,...",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, metavar="FOLDER")
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="[PART:]OPTION=VALUE,...",
        help="options of the config file, for all parts of the table or for one",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
