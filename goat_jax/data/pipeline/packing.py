"""Language-modeling rows: tokens with a loss mask, one text per row or several packed into one."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from goat_jax.data.pipeline.dataset import Batch, Draw, fill_places, lookups_of, pad_right
from goat_jax.data.pipeline.encoding import encode_pair, encode_pieces
from goat_jax.data.pipeline.overlap import mark_of
from goat_jax.data.tasks.language import CHAT_FORMATS, LanguageTask, Text, load_pieces
from goat_jax.errors import UserError
from goat_jax.typing import Tokenizer


@dataclass(frozen=True, eq=False)
class Texts:
    """Dataset of N tokenized texts in M rows.

    Attributes:
      input_ids: the token ids, N int32 arrays of varying length.
      loss_masks: N bool arrays of the same lengths, True where a token counts in the
        loss.
      members: the text numbers of each row in order, M lists.
      lengths: the number of tokens in each row, [M] int32.
      pad_id: the padding token; it is masked in attention and in the loss.
      truncated: the number of texts whose end was cut off.
      dropped: the number of texts left out because no token to train on was left.
      tasks: "task_ids", "task_types" -> [N] int32, for texts of several tasks; else empty.
      prompts: the number of each text's first tokens that are a segment of their own, N numbers,
        for models that read prompts apart; else empty.
      packed: whether rows may hold several texts, so that batches have `segments`. Those with
        `prompts` have them, too.

    >>> ids, mask = np.array([4, 5], np.int32), np.array([False, True])
    >>> Texts([ids], [mask], [[0]], np.array([2])).gather(np.array([0]), 3)["segments"].tolist()
    [[1, 1, 0]]
    """

    input_ids: list[np.ndarray] = field(repr=False)
    loss_masks: list[np.ndarray] = field(repr=False)
    members: list[list[int]] = field(repr=False)
    lengths: np.ndarray = field(repr=False)
    pad_id: int = 0
    truncated: int = 0
    dropped: int = 0
    tasks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    prompts: Sequence[int] = field(default=(), repr=False)
    packed: bool = True

    @property
    def marks(self) -> tuple[bytes, ...]:
        """A digest of each text's tokens that identifies the text."""
        return tuple(mark_of(ids) for ids in self.input_ids)

    @property
    def lookups(self) -> dict[str, list[np.ndarray]]:
        """The ids that a model looks up."""
        return lookups_of(self)

    @property
    def contents(self) -> tuple[Any, ...]:
        """Tokens, loss masks, the texts of each row, and the task numbers."""
        return self.input_ids, self.loss_masks, self.members, self.tasks

    def __len__(self) -> int:
        return len(self.members)

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """Collates one batch, padded on the right.

        Returns `input_ids`, `attention_mask` and `loss_mask` [B, T] int32, and `weights` [B]
        float32. Packed texts and those with prompts add `segments` [B, T] int32: 1, 2, ... for the
        texts of a row, or 2n - 1 and 2n for the prompt and the rest of text n; 0 for padding. Texts
        of several tasks add `task_ids` [B, T] int32, since they may share a row, and `task_types`
        [B].
        """
        del draw
        numbers, weights = fill_places(rows)
        row_texts = [self.members[number] for number in numbers]
        input_ids = [
            np.concatenate([self.input_ids[text] for text in texts]) for texts in row_texts
        ]
        loss_masks = [
            np.concatenate([self.loss_masks[text] for text in texts]) for texts in row_texts
        ]
        segments = [
            np.repeat(np.arange(1, len(texts) + 1), [len(self.input_ids[text]) for text in texts])
            for texts in row_texts
        ]
        texts_of_tokens = padded = pad_right(segments, length, 0)
        if self.prompts:
            segments = [self._halves(texts) for texts in row_texts]
            padded = pad_right(segments, length, 0)
        tasks = {}
        if "task_ids" in self.tasks:
            # 0 stands for padding, so segment i of a row is text i - 1.
            of_text = [np.concatenate([[0], self.tasks["task_ids"][texts]]) for texts in row_texts]
            ids = [table[row] for table, row in zip(of_text, texts_of_tokens, strict=True)]
            tasks["task_ids"] = np.stack(ids).astype(np.int32)
        if "task_types" in self.tasks:
            tasks["task_types"] = self.tasks["task_types"][[texts[0] for texts in row_texts]]
        return {
            "input_ids": pad_right(input_ids, length, self.pad_id),
            "attention_mask": (padded > 0).astype(np.int32),
            "loss_mask": pad_right(loss_masks, length, 0),
            "weights": weights,
            **({"segments": padded} if self.packed or self.prompts else {}),
            **tasks,
        }

    def _halves(self, texts: Sequence[int]) -> np.ndarray:
        """Returns the segments of a row's tokens, two for every text."""
        sizes = [(self.prompts[text], len(self.input_ids[text])) for text in texts]
        counts = [count for first, whole in sizes for count in (first, whole - first)]
        return np.repeat(np.arange(1, len(counts) + 1), counts)


def load_texts(task: LanguageTask, split: str, tokenizer: Tokenizer, max_length: int) -> Texts:
    """Loads a split's texts, tokenized, truncated to `max_length` tokens, and packed if set so.

    Raises UserError if `max_length` is below 2, or if no token to train on is left.
    """
    return encode_texts(task, split, load_pieces(task, split, tokenizer), tokenizer, max_length)


def encode_texts(
    task: LanguageTask,
    split: str,
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    max_length: int,
    between: Sequence[int] = (),
) -> Texts:
    """Does the same as `load_texts` for rows that have been read already.

    `between` are the tokens between a prompt and its answer in an encoder-decoder (`encode_pair`).
    """
    if max_length < 2:
        raise UserError(f"max_length {max_length}: a text needs 2 tokens or more")
    chat = task.format in CHAT_FORMATS
    all_ids, all_masks, all_tasks, prompts, truncated, dropped = [], [], [], [], 0, 0
    for text in texts:
        # A chat template writes the initial and final special tokens itself.
        if between:
            ids, loss_mask, first = encode_pair(
                tokenizer, text.pieces, between, end=not chat, special=not chat
            )
        else:
            ids, loss_mask = encode_pieces(tokenizer, text.pieces, end=not chat, special=not chat)
            first = 0
        truncated += len(ids) > max_length
        ids, loss_mask = ids[:max_length], loss_mask[:max_length]
        # The first token is never predicted, so it cannot be the only one to train on.
        has_target = any(piece.in_loss and piece.text for piece in text.pieces)
        if not (has_target and loss_mask[1:].any()):
            dropped += 1
            continue
        all_ids.append(ids)
        all_masks.append(loss_mask)
        all_tasks.append(text.tasks)
        prompts.append(first)
    if not all_ids:
        raise UserError(
            f"task {task.name}: none of the {dropped} {split} texts has a token to train on within "
            f"{max_length} tokens: raise max_length"
        )
    lengths = np.array([len(ids) for ids in all_ids], np.int32)
    members = pack(lengths, max_length) if task.packing else [[i] for i in range(len(lengths))]
    return Texts(
        input_ids=all_ids,
        loss_masks=all_masks,
        members=members,
        lengths=np.array([lengths[texts].sum() for texts in members], np.int32),
        pad_id=pad_id(tokenizer),
        truncated=truncated,
        dropped=dropped,
        tasks={
            name: np.array([tasks[name] for tasks in all_tasks], np.int32) for name in all_tasks[0]
        },
        prompts=prompts if between else (),
        packed=task.packing,
    )


def pad_id(tokenizer: Tokenizer) -> int:
    """Returns the padding token, or else any id that the tokenizer has: padding is masked."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(number for number in ids if number is not None)


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Packs texts into rows with little empty space (best-fit decreasing).

    Args:
      lengths: the number of tokens of each text [N], at most `capacity`.
      capacity: the number of tokens that fit into a row.

    Returns the text numbers of each row; the same lengths always give the same lists.

    >>> pack(np.array([5, 3, 4, 2]), 8)
    [[0, 1], [2, 3]]
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, number of the bin), sorted
    for text in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[text])
        place = bisect.bisect_left(room, (need, -1))
        if place == len(room):
            bins.append([])
            free, number = capacity, len(bins) - 1
        else:
            free, number = room.pop(place)
        bins[number].append(text)
        bisect.insort(room, (free - need, number))
    return bins
