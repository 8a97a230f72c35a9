"""Task types: for each, how a run reads its rows, its loss, its scores and the model it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from goat_jax.data.pipeline.dataset import Rows
from goat_jax.data.pipeline.image_view import view_of
from goat_jax.data.pipeline.images import ImageRows, load_images
from goat_jax.data.pipeline.options import encode_options
from goat_jax.data.pipeline.packing import Texts, encode_texts
from goat_jax.data.pipeline.tokenize import Encoded, encode
from goat_jax.data.pipeline.tokenize_words import EncodedWords, encode_words
from goat_jax.data.tasks.contamination import questions_in_training
from goat_jax.data.tasks.evaluation import EvalTask, evaluation_questions
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.language import LanguageTask, load_pieces
from goat_jax.data.tasks.multi_label import MultiLabelTask
from goat_jax.data.tasks.registry import Task
from goat_jax.data.tasks.text import TextTask, load_examples
from goat_jax.data.tasks.tokens import TokenTask, load_words
from goat_jax.errors import UserError
from goat_jax.models.known_sizes import model_config
from goat_jax.models.load import Loaded
from goat_jax.models.seq2seq.config import Seq2SeqConfig
from goat_jax.models.seq2seq.families import FAMILIES as SEQ2SEQ
from goat_jax.models.vision.heads import CLASSIFIER, ZERO_SHOT
from goat_jax.models.vision.model import VisionModel
from goat_jax.models.vision.text_tower import class_kernel
from goat_jax.pretrained.gguf.file import SUFFIX
from goat_jax.pretrained.resolve import PACKAGE, find_model
from goat_jax.training.losses import (
    CLASSIFICATION,
    IMAGE_CLASSIFICATION,
    LANGUAGE,
    MULTI_LABEL,
    REGRESSION,
    TAGGING,
    LossFn,
)
from goat_jax.training.scores import (
    Totals,
    score_options,
    score_outputs,
    score_tags,
    score_tokens,
)
from goat_jax.typing import Tokenizer

LANGUAGE_MODEL = "language model"
"""Kind of the models that generate text."""

TEXT_ENCODER = "text encoder"


@dataclasses.dataclass(frozen=True)
class TaskType:
    """A task type.

    Attributes:
        needs: the kinds of models it trains (`models.registry.Architecture.kind`).
        unit: the unit of its throughput, "tokens" or "images".
        loss_fn: task -> the loss.
        model_options: task -> the fields of the model's config that the task fixes.
        prepare: (task, loaded model, its folder) -> None; sets weights that depend on the task.
        one_row: (task, model's path, tokens) -> one blank row, which has the shapes of a batch.
        read: (task, split, tokenizer) -> the split's rows with their columns checked, not yet
            tokenized; formats with a chat template use the tokenizer.
        encode: (task, split, result of `read`, tokenizer, most tokens in a row, model's path) ->
            the split's encoded rows.
        scores: (task, sums over all rows, batches, their outputs) -> scores by metric.
        notes: task -> further one-line remarks about its rows.
    """

    needs: tuple[str, ...]
    unit: str
    loss_fn: Callable[[Any], LossFn]
    model_options: Callable[[Any], dict[str, Any]]
    prepare: Callable[[Any, Loaded, Path], None]
    one_row: Callable[[Any, str, int], Rows]
    read: Callable[[Any, str, Any], Any]
    encode: Callable[[Any, str, Any, Any, int, str], Rows]
    scores: Callable[[Any, Totals, Sequence[Mapping], Sequence[np.ndarray]], dict[str, float]]
    notes: Callable[[Any], Sequence[str]] = lambda task: ()


def _nothing(task: Task, loaded: Loaded, path: Path) -> None:
    """Does nothing: most models depend on the task only by the number of labels."""


def _start_from_class_names(task: ImageTask, loaded: Loaded, path: Path) -> None:
    """Initializes a zero-shot head from the class names if the checkpoint does not have one."""
    model = loaded.model
    assert isinstance(model, VisionModel)  # all image encoders
    if model.config.head == ZERO_SHOT and f"{CLASSIFIER}.weight" in loaded.fresh:
        kernel = class_kernel(path, task.labels, task.prompt)
        model.head.classifier.kernel.set_value(jnp.asarray(kernel))


def _blank_example(task: TextTask, model: str, length: int) -> Rows:
    ids, lengths = np.zeros(length, np.int32), np.array([length], np.int32)
    return Encoded([ids], None, lengths, task.blank_labels(1))


def _blank_words(task: TokenTask, model: str, length: int) -> Rows:
    ids, lengths = np.zeros(length, np.int32), np.array([length], np.int32)
    return EncodedWords([ids], None, lengths, np.zeros(1, np.int32), tags=[ids])


def _blank_text(task: LanguageTask, model: str, length: int) -> Rows:
    ids, loss_mask = np.zeros(length, np.int32), np.ones(length, bool)
    lengths, prompts = np.array([length], np.int32), (1,) if before_answer(model) else ()
    return Texts([ids], [loss_mask], [[0]], lengths, prompts=prompts, packed=task.packing)


def _blank_image(task: ImageTask, model: str, length: int) -> Rows:
    folder = find_model(model) if model.startswith(PACKAGE) else Path(model)
    row, label = {task.image: np.zeros((2, 2), np.uint8)}, np.zeros(1, np.int32)
    return ImageRows(task, view_of(task, folder), "blank", [row], [0], label)


def before_answer(model: str) -> tuple[int, ...]:
    """Returns the tokens between a prompt and its answer; none in a model of one stack.

    Args:
        model: the path or name of the pretrained model, or of one whose sizes are known.
    """
    if model.endswith(SUFFIX):
        return ()
    try:
        hf = model_config(model)
    except UserError:  # a name on the hub whose sizes are not known
        hf = model_config(find_model(model))
    return Seq2SeqConfig.from_hf(hf).before_answer if hf.get("model_type") in SEQ2SEQ else ()


def _as_trained(
    task: ImageTask, split: str, images: ImageRows, tokenizer: Tokenizer, length: int, model: str
) -> Rows:
    """Returns the images with the preprocessing of the model's checkpoint."""
    return dataclasses.replace(images, view=view_of(task, find_model(model)))


def _read_texts_or_questions(task: EvalTask, split: str, tokenizer: Tokenizer) -> Sequence[Any]:
    """Reads the rows of a split; the evaluation rows as questions if options are compared."""
    if _has_questions(task, split):
        return evaluation_questions(task, split)
    return load_pieces(task, split, tokenizer)


def _encode_texts_or_options(
    task: EvalTask, split: str, rows: Sequence[Any], tokenizer: Tokenizer, length: int, model: str
) -> Rows:
    between = before_answer(model)
    if _has_questions(task, split):
        return encode_options(task, rows, tokenizer, length, between)
    return encode_texts(task, split, rows, tokenizer, length, between)


def _has_questions(task: EvalTask, split: str) -> bool:
    return task.compares_options and split == "evaluation"


_TEXT = TaskType(
    needs=(TEXT_ENCODER, LANGUAGE_MODEL),
    unit="tokens",
    loss_fn=lambda task: CLASSIFICATION if task.labels else REGRESSION,
    model_options=lambda task: {"head": task.HEAD, "num_labels": max(1, len(task.labels))},
    prepare=_nothing,
    one_row=_blank_example,
    read=lambda task, split, tokenizer: load_examples(task, split),
    encode=lambda task, split, examples, tokenizer, length, model: encode(
        tokenizer, examples, length
    ),
    scores=score_outputs,
)
_TAGS = TaskType(
    needs=(TEXT_ENCODER, LANGUAGE_MODEL),
    unit="tokens",
    loss_fn=lambda task: TAGGING,
    model_options=lambda task: {"head": task.HEAD, "num_labels": len(task.labels)},
    prepare=_nothing,
    one_row=_blank_words,
    read=lambda task, split, tokenizer: load_words(task, split),
    encode=lambda task, split, words, tokenizer, length, model: encode_words(
        tokenizer, words, length
    ),
    scores=score_tags,
)
_LANGUAGE = TaskType(
    needs=(LANGUAGE_MODEL,),
    unit="tokens",
    loss_fn=lambda task: LANGUAGE,
    model_options=lambda task: {},
    prepare=_nothing,
    one_row=_blank_text,
    read=load_pieces,
    encode=lambda task, split, pieces, tokenizer, length, model: encode_texts(
        task, split, pieces, tokenizer, length, before_answer(model)
    ),
    scores=score_tokens,
)

_IMAGE = TaskType(
    needs=("image encoder",),
    unit="images",
    loss_fn=lambda task: IMAGE_CLASSIFICATION,
    model_options=lambda task: {"num_labels": len(task.labels)},
    prepare=_start_from_class_names,
    one_row=_blank_image,
    read=lambda task, split, tokenizer: load_images(task, split),
    encode=_as_trained,
    scores=score_outputs,
)

TASK_TYPES: dict[type, TaskType] = {
    TextTask: _TEXT,
    MultiLabelTask: dataclasses.replace(_TEXT, loss_fn=lambda task: MULTI_LABEL),
    TokenTask: _TAGS,
    LanguageTask: _LANGUAGE,
    EvalTask: dataclasses.replace(
        _LANGUAGE,
        read=_read_texts_or_questions,
        encode=_encode_texts_or_options,
        scores=score_options,
        notes=questions_in_training,
    ),
    ImageTask: _IMAGE,
}
"""Class of a task -> its task type."""


def task_type_of(task: Task) -> TaskType:
    """Returns the task type of a task.

    >>> task_type_of(LanguageTask("notes", "a.jsonl", "b.jsonl")).needs
    ('language model',)
    """
    return TASK_TYPES[type(task)]


def check_model(task: Task, kind: str, where: str) -> None:
    """Checks that a model is of the kind that a task needs.

    Args:
        task: the task.
        kind: the model's kind.
        where: the model's name in the message.

    Raises:
        UserError: the model is of another kind.
    """
    needs = task_type_of(task).needs
    if kind not in needs:
        known = " or a ".join(needs)
        raise UserError(f"{where} is a {kind}, but task {task.name} needs a {known}")
