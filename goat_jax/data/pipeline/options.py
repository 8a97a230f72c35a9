"""Evaluation rows of multiple-choice questions: one text for each option of a question.

The prediction is the option whose text has the largest likelihood after the prompt, as with the
scoring method `likelihood`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from goat_jax.data.pipeline.dataset import Batch, Draw, fill_places
from goat_jax.data.pipeline.encoding import Piece, encode_pair, encode_pieces
from goat_jax.data.pipeline.packing import Texts, pad_id
from goat_jax.data.tasks.evaluation import EvalTask, Question
from goat_jax.errors import UserError
from goat_jax.typing import Tokenizer


@dataclass(frozen=True, eq=False)
class OptionTexts(Texts):
    """Dataset of the N options of some questions, one text in a row.

    Attributes:
        questions: the number of each option's question, [N] int32.
        correct: 1 for the correct option of a question, else 0, [N] int32.
    """

    questions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)
    correct: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)

    @property
    def contents(self) -> tuple[Any, ...]:
        """Contents of `Texts`, the options' questions, and which are correct."""
        return *super().contents, self.questions, self.correct

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """Collates one batch as `Texts` does; adds `questions` and `correct` [B] int32."""
        numbers, _ = fill_places(rows)
        columns = {"questions": self.questions[numbers], "correct": self.correct[numbers]}
        return super().gather(rows, length, draw) | columns


def encode_options(
    task: EvalTask,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    max_length: int,
    between: Sequence[int] = (),
) -> OptionTexts:
    """Tokenizes the options of questions, each after the question's prompt.

    Args:
        task: the task, which states whether batches have segments.
        questions: the questions.
        tokenizer: the checkpoint's tokenizer; prompt and option are tokenized as in training.
        max_length: the largest number of tokens of a text.
        between: the tokens between a prompt and its answer in an encoder-decoder (`encode_pair`).

    Raises:
        UserError: an option that is longer, or that has no tokens.
    """
    all_ids, all_masks, prompts, numbers, correct = [], [], [], [], []
    for number, question in enumerate(questions):
        for label, text in zip(question.labels, question.continuations, strict=True):
            pieces = [Piece(question.prompt, False), Piece(text, True)]
            if between:
                ids, loss_mask, first = encode_pair(tokenizer, pieces, between, end=False)
                prompts.append(first)
            else:
                ids, loss_mask = encode_pieces(tokenizer, pieces, end=False)
            if len(ids) > max_length or not loss_mask[1:].any():
                raise UserError(
                    f"task {task.name}: question {question.id} has {len(ids)} tokens with option "
                    f"{text[:40]!r}, of which some have to be the option's: max_length is "
                    f"{max_length}; raise it, or leave metric accuracy out"
                )
            all_ids.append(ids)
            all_masks.append(loss_mask)
            numbers.append(number)
            correct.append(label == question.answer)
    return OptionTexts(
        input_ids=all_ids,
        loss_masks=all_masks,
        members=[[number] for number in range(len(all_ids))],
        lengths=np.array([len(ids) for ids in all_ids], np.int32),
        pad_id=pad_id(tokenizer),
        prompts=prompts,
        packed=task.packing,
        questions=np.array(numbers, np.int32),
        correct=np.array(correct, np.int32),
    )


def share_most_likely(questions: np.ndarray, correct: np.ndarray, losses: np.ndarray) -> float:
    """Returns the share of questions whose correct option has the least loss, all [N].

    >>> share_most_likely(np.array([0, 0, 1, 1]), np.array([1, 0, 0, 1]), np.array([2, 3, 4, 5]))
    0.5
    """
    order = np.argsort(losses, kind="stable")
    _, first = np.unique(questions[order], return_index=True)
    return float(correct[order][first].mean())
