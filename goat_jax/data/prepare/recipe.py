"""What a `Recipe` is: which files a data set is made of, and how they become rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goat_jax.data.prepare.fetch import Remote

Rows = Iterator[tuple[str | int, dict[str, Any]]]
"""(a key that no other row of the set has, the row as TFDS's features want it)."""


@dataclass(frozen=True)
class Recipe:
    """How a data set is made, once, in the form of tensorflow_datasets.

    Attributes:
      builder: its name in TFDS, with its config; the name it gets, if `features` are given.
      read: files by name -> split -> its rows; None: the builder reads them itself, which those of
        texts can do without TensorFlow.
      remotes: the files.
      licence: one line for a person.
      note: what to know where a file cannot be fetched.
      features: for a set that TFDS does not have: (tfds.features) -> column -> its feature.

    >>> Recipe("gtsrb", None, (Remote("a.zip"),), "free").by_hand
    ('a.zip',)
    """

    builder: str
    read: Callable[[Mapping[str, Path]], Mapping[str, Rows]] | None
    remotes: tuple[Remote, ...]
    licence: str
    note: str = ""
    features: Callable[[Any], Mapping[str, Any]] | None = None

    @property
    def by_hand(self) -> tuple[str, ...]:
        """The files that no address is known of."""
        return tuple(remote.filename for remote in self.remotes if not remote.url)

    @property
    def size(self) -> int:
        """Bytes to fetch, of the files whose size is known."""
        return sum(remote.size for remote in self.remotes)
