"""`Recipe`: the files of a data set, and how to read rows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from goat_jax.data.prepare.fetch import RemoteFile

Rows = Iterator[tuple[str | int, dict[str, Any]]]
"""Pairs of a key that is unique within the set and a row in the form of TFDS's features."""


@dataclass(frozen=True)
class Recipe:
    """Instructions to build a data set in the format of tensorflow_datasets.

    Attributes:
      builder: the set's name in TFDS, with its config; or its new name, if `features` are given.
      read: the reader: files by name -> split -> the split's rows. None: TFDS's builder reads the
        files, which the text builders can do without TensorFlow.
      remotes: the files.
      licence: the set's terms of use, in one line.
      note: a hint for users about files that are hard or impossible to fetch.
      features: the columns of a set that TFDS does not have: (tfds.features) -> column -> its
        feature; None: TFDS has a builder.

    >>> Recipe("gtsrb", None, (RemoteFile("a.zip"),), "free").by_hand
    ('a.zip',)
    """

    builder: str
    read: Callable[[Mapping[str, Path]], Mapping[str, Rows]] | None
    remotes: tuple[RemoteFile, ...]
    licence: str
    note: str = ""
    features: Callable[[ModuleType], Mapping[str, Any]] | None = None

    @property
    def by_hand(self) -> tuple[str, ...]:
        """Names of the files without a known address."""
        return tuple(remote.filename for remote in self.remotes if not remote.url)

    @property
    def size(self) -> int:
        """Total bytes of the files whose size is known."""
        return sum(remote.size for remote in self.remotes)
