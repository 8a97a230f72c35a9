"""Text to token ids, one way for training, generation and scoring.

A text is tokenised as a whole, however many parts it has: parts that are tokenised alone have other
tokens (sentencepiece starts each with a space). A part is found again by its characters. A token
that holds characters of two parts is learnt if one of them is, as in transformers and TRL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

import numpy as np

from goat_jax.data.sources.text_fields import check_text


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
      text: its characters.
      learnt: whether its tokens count in the loss.
    """

    text: str
    learnt: bool


def encode_pieces(
    tokenizer: Any, pieces: Sequence[Piece], end: bool, special: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [T] int32 of a text and the mask [T] of those that are learnt.

    Args:
      end: close with the tokenizer's end of text, learnt if the last piece is.
      special: begin with the tokens that the tokenizer begins a text with; a chat template writes
        its own.
    """
    text = check_text("".join(piece.text for piece in pieces), "the text")
    start = start_tokens(tokenizer, text) if special else []
    ids, learnt = _text_tokens(tokenizer, text, pieces)
    last = tokenizer.eos_token_id
    if end and last is not None and ids[-1:] != [last]:
        ids, learnt = [*ids, last], [*learnt, bool(pieces) and pieces[-1].learnt]
    return np.array([*start, *ids], np.int32), np.array([*[False] * len(start), *learnt], bool)


def encode_prompt(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """The token ids of a text that the model goes on with; as in training, it has no end.

    Args:
      special: as for `encode_pieces`.
    """
    return encode_pieces(tokenizer, [Piece(text, False)], end=False, special=special)[0].tolist()


def start_tokens(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer puts before a text (Llama's <s>, BERT's [CLS]), unless it is there."""
    sample = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(sample["input_ids"], sample["special_tokens_mask"], strict=True)
    first = [number for number, added in takewhile(lambda pair: pair[1], marked)]
    already = first and text.startswith(tokenizer.convert_ids_to_tokens(first[0]))
    return [] if already else first


def _text_tokens(
    tokenizer: Any, text: str, pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """The tokens of the text itself, and which of them are learnt."""
    if not text:
        return [], []
    if not getattr(tokenizer, "is_fast", False):
        return _tokens_by_prefix(tokenizer, text, pieces)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = np.array(found["offset_mapping"], np.int64).reshape(-1, 2).T
    # Byte-level tokenizers may cut spaces off the offsets, and all of a token that is one.
    before = np.concatenate([[0], ends[:-1]])
    starts = np.where(starts == ends, np.minimum(before, starts), starts)
    ends = np.minimum(np.maximum(ends, starts + 1), len(text))
    characters = np.repeat([piece.learnt for piece in pieces], [len(p.text) for p in pieces])
    counts = np.concatenate([[0], np.cumsum(characters)])
    return found["input_ids"], (counts[ends] > counts[starts]).tolist()


def _tokens_by_prefix(
    tokenizer: Any, text: str, pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """As `_text_tokens`, for tokenizers written in Python, which know no offsets.

    A part begins after the tokens that the text before it shares with the whole. Where the two
    differ, a token lies across the beginning.
    """

    def tokens(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    ids = tokens(text)
    learnt = np.zeros(len(ids), bool)
    places = [0, *accumulate(len(piece.text) for piece in pieces)]
    for piece, first, after in zip(pieces, places, places[1:], strict=False):
        if piece.learnt and piece.text:
            until = tokens(text[:after])
            across = _shared(until, ids) < len(until)
            learnt[_shared(tokens(text[:first]), ids) : _shared(until, ids) + across] = True
    return ids, learnt.tolist()


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids with which both begin."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
