"""Tokenizes rows of words; the tag of a word is that of its first token."""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from goat_jax.data.pipeline.dataset import Batch, Draw, pad_right
from goat_jax.data.pipeline.tokenize import Encoded, encode
from goat_jax.data.tasks.text import Examples
from goat_jax.data.tasks.tokens import TaggedWords
from goat_jax.typing import Tokenizer

NO_TAG = -100
"""Label of a token that is not the first one of a word; losses and scores ignore it."""


@dataclass(frozen=True, eq=False)
class EncodedWords(Encoded):
    """Dataset of N tokenized rows of words, padded per batch.

    Attributes:
      first_tokens: for every row the position of each word's first token, -1 for a word that was
        cut off or has no token.
      tags: for every row the tag's number of each token, `NO_TAG` for others; N int32 arrays.
    """

    first_tokens: list[np.ndarray] = field(default_factory=list, repr=False)
    tags: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def contents(self) -> tuple[Any, ...]:
        """Tokens and tags."""
        return self.input_ids, self.tags

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """Collates one batch as `Encoded.gather` does; `labels` are [B, T] int32.

        >>> ids, tags = [np.array([2, 5])], [np.array([NO_TAG, 0], np.int32)]
        >>> data = EncodedWords(ids, None, np.array([2]), np.array([0]), tags=tags)
        >>> data.gather(np.array([0]), 3)["labels"].tolist()
        [[-100, 0, -100]]
        """
        batch = super().gather(rows, length, draw)
        tags = [self.tags[number] for number in batch["labels"]]
        return batch | {"labels": pad_right(tags, length, NO_TAG)}


def encode_words(tokenizer: Tokenizer, rows: TaggedWords, max_length: int) -> EncodedWords:
    """Tokenizes every row as a text, its words joined by spaces, truncated to `max_length` tokens.

    Raises UserError as `encode` does.
    """
    texts = tuple(" ".join(words) for words in rows.words)
    numbers = np.arange(len(texts), dtype=np.int32)  # `gather` finds the rows' tags by them
    encoded = encode(tokenizer, Examples((texts,), numbers, rows.marks), max_length)
    found = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_offsets_mapping=True
    )
    firsts = [
        _first_tokens(words, offsets)
        for words, offsets in zip(rows.words, found["offset_mapping"], strict=True)
    ]
    fields = {name: getattr(encoded, name) for name in Encoded.__dataclass_fields__}
    tags = [
        _tags(tags, first, len(ids))
        for tags, first, ids in zip(rows.tags, firsts, encoded.input_ids, strict=True)
    ]
    return EncodedWords(**fields, first_tokens=firsts, tags=tags)


def _first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the position of each word's first token in the words joined by spaces.

    A token belongs to the word of its last character: some begin with the space before it.

    >>> _first_tokens(["play", "", "ed"], [(0, 0), (0, 2), (2, 4), (5, 8)]).tolist()
    [1, -1, 3]
    """
    starts = list(itertools.accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    first = np.full(len(words), -1, np.int32)
    for place, (start, end) in enumerate(offsets):
        if end <= start:  # a special token
            continue
        word = bisect.bisect_right(starts, end - 1) - 1
        inside = end - 1 < starts[word] + len(words[word])
        if inside and first[word] < 0:
            first[word] = place
    return first


def _tags(tags: Sequence[int], first: np.ndarray, length: int) -> np.ndarray:
    placed = np.full(length, NO_TAG, np.int32)
    for tag, place in zip(tags, first, strict=False):
        if place >= 0:
            placed[place] = tag
    return placed
