"""Detects rows that are in both the training and the held-out split, which inflate its scores."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

START = 65536
"""Bytes of a file that are hashed, besides its size; images equal in both count as the same."""


def mark_of(value: object) -> bytes:
    """Returns a short digest of a row's id, texts, or image (bytes, an array, or a file's path).

    >>> mark_of(("fine film",)) == mark_of(("fine film",)), mark_of("a") == mark_of("b")
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(value, Path):
        with value.open("rb") as file:
            digest.update(f"{value.stat().st_size}:".encode() + file.read(START))
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.shape}:".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        digest.update(f"{len(value)}:".encode() + value[:START])
    else:
        digest.update(repr(value).encode())
    return digest.digest()


def overlap(train: Sequence[bytes], held_out: Sequence[bytes]) -> int:
    """Counts the held-out rows that are also training rows, compared by `mark_of`.

    >>> overlap([b"a", b"b", b"b"], [b"b", b"b", b"c"])
    2
    """
    known = set(train)
    return sum(mark in known for mark in held_out)


def note_of(train: Sequence[bytes], held_out: Sequence[bytes]) -> str:
    """Returns one line that reports the overlap; empty if no row is in both splits.

    >>> note_of([b"a"], [b"a", b"b"])
    '1 of 2 held-out rows is also in the training rows'
    """
    count = overlap(train, held_out)
    verb = "is" if count == 1 else "are"
    return (
        f"{count:,} of {len(held_out):,} held-out rows {verb} also in the training rows"
        if count
        else ""
    )
