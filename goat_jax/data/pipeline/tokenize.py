"""Tokenizes labeled texts into ragged rows; padding is decided per batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from goat_jax.data.pipeline.dataset import Batch, Draw, fill_places, lookups_of, pad_right
from goat_jax.data.tasks.text import Examples
from goat_jax.errors import UserError, first_line
from goat_jax.files import user_path
from goat_jax.pretrained.gguf.file import SUFFIX
from goat_jax.pretrained.gguf.tokenizer import gguf_tokenizer, is_known
from goat_jax.pretrained.quiet_transformers import import_transformers
from goat_jax.typing import Tokenizer

# Any of these can hold a vocabulary; the configuration files alone cannot.
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Dataset of N tokenized, unpadded rows with labels.

    Attributes:
      input_ids: the token ids, N int32 arrays of varying length.
      token_type_ids: the token types, N int32 arrays of the same lengths (0 first text, 1 second),
        or None.
      lengths: the number of tokens in each row, [N] int32.
      labels: the labels, [N] int32 class ids or float32 values, or [N, C] float32 for several
        labels a row.
      pad_id: the padding token.
      truncated: the number of rows longer than `max_length`, whose end was cut off.
      dropped: the number of rows left out, always 0: every row has a label.
      marks: a digest of each row's texts that identifies the row.
      parts: name -> [N] float32, 1 where a row belongs to that part of a held-out split.
      tasks: "task_ids", "task_types" -> [N] int32, for rows of several tasks; else empty.

    >>> ids = [np.array([2, 7, 3], np.int32)]
    >>> len(Encoded(ids, None, np.array([3], np.int32), np.array([1], np.int32)))
    1
    """

    input_ids: list[np.ndarray] = field(repr=False)
    token_type_ids: list[np.ndarray] | None = field(repr=False)
    lengths: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    pad_id: int = 0
    truncated: int = 0
    dropped: int = 0
    marks: tuple[bytes, ...] = field(default=(), repr=False)
    parts: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    tasks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def lookups(self) -> dict[str, list[np.ndarray]]:
        """The ids that a model looks up."""
        return lookups_of(self) | {"type_vocab_size": self.token_type_ids or []}

    @property
    def contents(self) -> tuple[Any, ...]:
        """Tokens, token types, labels, parts and task numbers."""
        return self.input_ids, self.token_type_ids, self.labels, self.parts, self.tasks

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """Collates one batch, padded on the right.

        Returns `input_ids`, `attention_mask`, `token_type_ids` [B, T] int32, `labels` [B] or
        [B, C] (the data's dtype), `weights` [B] float32, `part_NAME` [B] float32 for every part,
        and `task_ids` and `task_types` [B] int32 if the task has them.

        >>> data = Encoded([np.array([4, 5])], None, np.array([2]), np.array([1]))
        >>> data.gather(np.array([0, -1]), 3)["attention_mask"].tolist()
        [[1, 1, 0], [1, 1, 0]]
        """
        del draw
        numbers, weights = fill_places(rows)
        types = self.token_type_ids
        return {
            "input_ids": pad_right([self.input_ids[i] for i in numbers], length, self.pad_id),
            "attention_mask": (np.arange(length) < self.lengths[numbers, None]).astype(np.int32),
            "token_type_ids": np.zeros((len(rows), length), np.int32)
            if types is None
            else pad_right([types[i] for i in numbers], length, 0),
            "labels": self.labels[numbers],
            "weights": weights,
            **{f"part_{name}": rows[numbers] for name, rows in self.parts.items()},
            **{name: rows[numbers] for name, rows in self.tasks.items()},
        }


class LateTokenizer:
    """Tokenizer that is loaded on first use, so that rows are checked before the load.

    Args:
      load: the function that returns the tokenizer.

    >>> LateTokenizer(lambda: "a tokenizer").upper()
    'A TOKENIZER'
    """

    def __init__(self, load: Callable[[], Tokenizer]):
        self._load = load

    @functools.cached_property
    def loaded(self) -> Tokenizer:
        """The tokenizer, loaded on first access."""
        return self._load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.loaded(*args, **options)


def late_tokenizer(load: Callable[[], Tokenizer]) -> Tokenizer:
    """Returns a tokenizer that is loaded on first use."""
    # A type checker does not see that `__getattr__` passes everything on.
    return cast(Tokenizer, LateTokenizer(load))


def load_tokenizer(folder: str | Path, add_tokens: Sequence[str] = ()) -> Tokenizer:
    """Loads the Hugging Face tokenizer of a folder or of a .gguf file, never from the network.

    A .gguf file whose tokenizer is of a kind that is not known here takes that of its folder.

    Args:
        folder: the folder or file.
        add_tokens: the tokens to add to it, those that it does not have.

    Raises:
        UserError: the folder is missing, has no vocabulary, or cannot be read.

    >>> load_tokenizer("nowhere")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere: no such tokenizer folder
    """
    tokenizer = _read_tokenizer(user_path(folder))
    if add_tokens:
        from tokenizers import AddedToken

        # Found in the text as it is, before it is put into lower case.
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in add_tokens])
    return tokenizer


def _read_tokenizer(folder: Path) -> Tokenizer:
    if folder.suffix == SUFFIX:
        if not _has_vocabulary(folder.parent) or is_known(folder):
            return gguf_tokenizer(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such tokenizer folder")
    if not _has_vocabulary(folder):
        raise UserError(f"{folder} has no tokenizer: it needs one of {', '.join(VOCABULARY_FILES)}")
    try:
        return import_transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True
        )
    except Exception as error:  # what transformers raises depends on the file that is damaged
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def pad_token(tokenizer: Tokenizer) -> int:
    """Returns the padding token; without one the end-of-text token, or 0: padding is masked."""
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(pad for pad in pads if pad is not None)


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> Encoded:
    """Tokenizes every row with special tokens, truncated to at most `max_length` tokens.

    In a pair the longer text is truncated first. `token_type_ids` are kept for pairs, if the
    tokenizer returns them.

    Raises UserError if `max_length` leaves no room beside the special tokens, or exceeds the
    maximum length of the tokenizer's model.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "fine": 1, "film": 2}, "[PAD]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    >>> examples = Examples((("fine film", "film"),), np.array([1, 0], np.int32))
    >>> [ids.tolist() for ids in encode(tokenizer, examples, max_length=8).input_ids]
    [[1, 2], [2]]
    """
    pair = len(examples.texts) == 2
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if not special + len(examples.texts) <= max_length <= tokenizer.model_max_length:
        raise UserError(
            f"max_length {max_length} does not fit this tokenizer: choose"
            f" {special + len(examples.texts)} to {tokenizer.model_max_length}"
        )
    out = tokenizer(
        *(list(column) for column in examples.texts),
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
    )
    types = out.get("token_type_ids") if pair else None
    input_ids = [np.array(ids, np.int32) for ids in out["input_ids"]]
    return Encoded(
        input_ids=input_ids,
        token_type_ids=None if types is None else [np.array(ids, np.int32) for ids in types],
        lengths=np.array([len(ids) for ids in input_ids], np.int32),
        labels=examples.labels,
        pad_id=pad_token(tokenizer),
        truncated=sum(1 for encoding in out.encodings or () if encoding.overflowing),
        marks=examples.marks,
        parts=examples.parts,
        tasks=examples.tasks,
    )
