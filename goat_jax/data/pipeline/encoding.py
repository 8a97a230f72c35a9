"""Converts text to token ids, the same way for training, generation and scoring.

A text of several parts is tokenized in one piece, since parts tokenized separately can give
different tokens (sentencepiece starts each with a space). Character offsets then assign tokens to
parts. A token with characters of two parts is trained on if either part is, as in transformers and
TRL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import numpy as np

from goat_jax.data.sources.text_fields import check_text
from goat_jax.errors import UserError
from goat_jax.typing import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One part of a text.

    Attributes:
      text: the part's text.
      in_loss: whether its tokens count in the loss.
    """

    text: str
    in_loss: bool


def encode_pieces(
    tokenizer: Tokenizer, pieces: Sequence[Piece], end: bool, special: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenizes a text; returns its token ids [T] int32 and its loss mask [T] bool.

    Args:
      tokenizer: the Hugging Face tokenizer.
      pieces: the parts of the text, in order.
      end: whether to append the tokenizer's end-of-text token, trained on if the last piece is.
      special: whether to begin with the tokenizer's initial special tokens; False for the text of
        a chat template, which writes them itself.
    """
    text = check_text("".join(piece.text for piece in pieces), "the text")
    start = start_tokens(tokenizer, text) if special else []
    ids, loss_mask = _text_tokens(tokenizer, text, pieces)
    last = tokenizer.eos_token_id
    if end and last is not None and ids[-1:] != [last]:
        ids, loss_mask = [*ids, last], [*loss_mask, bool(pieces) and pieces[-1].in_loss]
    return np.array([*start, *ids], np.int32), np.array([*[False] * len(start), *loss_mask], bool)


def encode_pair(
    tokenizer: Tokenizer,
    pieces: Sequence[Piece],
    between: Sequence[int],
    end: bool,
    special: bool = True,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokenizes a text for an encoder-decoder, which reads its prompt apart from its answer.

    Args:
      tokenizer: the Hugging Face tokenizer.
      pieces: the parts of the text; the answer begins with the first that counts in the loss.
      between: the token that ends a prompt, and the one that begins an answer.
      end: as for `encode_pieces`.
      special: as for `encode_pieces`.

    Returns the token ids [T] int32, the loss mask [T] bool, and the number of the prompt's tokens.
    Raises UserError if there is no prompt.
    """
    first = next((n for n, piece in enumerate(pieces) if piece.in_loss), len(pieces))
    prompt = encode_pieces(tokenizer, pieces[:first], end=False, special=special)[0].tolist()
    if not prompt:
        raise UserError(
            "a text without a prompt: an encoder-decoder answers prompts; give rows with a prompt "
            "and a completion, and task.loss_on completion"
        )
    answer, loss_mask = encode_pieces(tokenizer, pieces[first:], end=end, special=False)
    ending, start = between
    prompt = prompt if prompt[-1] == ending else [*prompt, ending]
    ids = np.array([*prompt, start, *answer], np.int32)
    unlearned = [False] * (len(prompt) + 1)
    return ids, np.array([*unlearned, *loss_mask], bool), len(prompt)


def encode_prompt(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    """Returns the token ids of a prompt, tokenized as in training, without an end-of-text token.

    Args:
      tokenizer: the Hugging Face tokenizer.
      text: the prompt.
      special: whether to begin with special tokens, as for `encode_pieces`.
    """
    return encode_pieces(tokenizer, [Piece(text, False)], end=False, special=special)[0].tolist()


def start_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the special tokens the tokenizer puts before a text (Llama's <s>, BERT's [CLS]).

    Returns none if the text already begins with the first of them.
    """
    sample = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(sample["input_ids"], sample["special_tokens_mask"], strict=True)
    first = [number for number, added in takewhile(lambda pair: pair[1], marked)]
    already = first and text.startswith(tokenizer.convert_ids_to_tokens(first[0]))
    return [] if already else first


def _text_tokens(
    tokenizer: Tokenizer, text: str, pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """Returns the tokens of the text itself, and whether each is trained on."""
    if not text:
        return [], []
    if not getattr(tokenizer, "is_fast", False):
        return _tokens_by_prefix(tokenizer, text, pieces)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = np.array(tokens["offset_mapping"], np.int64).reshape(-1, 2).T
    # Byte-level tokenizers may trim spaces from offsets, so a lone space has an empty span.
    before = np.concatenate([[0], ends[:-1]])
    starts = np.where(starts == ends, np.minimum(before, starts), starts)
    ends = np.minimum(np.maximum(ends, starts + 1), len(text))
    characters = np.repeat([piece.in_loss for piece in pieces], [len(p.text) for p in pieces])
    counts = np.concatenate([[0], np.cumsum(characters)])
    return tokens["input_ids"], (counts[ends] > counts[starts]).tolist()


def _tokens_by_prefix(
    tokenizer: Tokenizer, text: str, pieces: Sequence[Piece]
) -> tuple[list[int], list[bool]]:
    """Does the same as `_text_tokens` for tokenizers written in Python, which give no offsets.

    The text before a part is tokenized alone. The part begins after the tokens that this prefix
    shares with the full text; where the two differ, a token spans the boundary.
    """

    def tokens(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    ids = tokens(text)
    loss_mask = np.zeros(len(ids), bool)
    places = [0, *accumulate(len(piece.text) for piece in pieces)]
    for piece, first, after in zip(pieces, places, places[1:], strict=False):
        if piece.in_loss and piece.text:
            until = tokens(text[:after])
            across = _shared(until, ids) < len(until)
            loss_mask[_shared(tokens(text[:first]), ids) : _shared(until, ids) + across] = True
    return ids, loss_mask.tolist()


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the length of the longest common prefix."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
