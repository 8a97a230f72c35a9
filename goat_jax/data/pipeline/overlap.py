"""Rows that are in the training split and in the held-out one: a score is worth less for them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

START = 65536
"""Bytes of a file that are looked at, besides its size: two images that agree in them are one."""


def mark_of(value: Any) -> bytes:
    """A short digest of a row's id, texts, or image (bytes, an array, or the path of a file).

    >>> mark_of(("fine film",)) == mark_of(("fine film",)), mark_of("a") == mark_of("b")
    (True, False)
    """
    found = hashlib.blake2b(digest_size=16)
    if isinstance(value, Path):
        with value.open("rb") as file:
            found.update(f"{value.stat().st_size}:".encode() + file.read(START))
    elif isinstance(value, np.ndarray):
        found.update(f"{value.shape}:".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        found.update(f"{len(value)}:".encode() + value[:START])
    else:
        found.update(repr(value).encode())
    return found.digest()


def overlap(train: Sequence[bytes], held_out: Sequence[bytes]) -> int:
    """How many held-out rows are training rows, too, by their marks.

    >>> overlap([b"a", b"b", b"b"], [b"b", b"b", b"c"])
    2
    """
    known = set(train)
    return sum(mark in known for mark in held_out)


def note_of(train: Sequence[bytes], held_out: Sequence[bytes]) -> str:
    """One line for a person, empty if no row is in both.

    >>> note_of([b"a"], [b"a", b"b"])
    '1 of 2 held-out rows is in the training rows, too'
    """
    count = overlap(train, held_out)
    verb = "is" if count == 1 else "are"
    return (
        f"{count:,} of {len(held_out):,} held-out rows {verb} in the training rows, too"
        if count
        else ""
    )
