"""Predictors: for each task type, from rows without labels to `Predictions`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from goat_jax.config.run import RunConfig
from goat_jax.data.pipeline.batching import evaluation_plan
from goat_jax.data.pipeline.dataset import FILLER, Rows, with_known_ids
from goat_jax.data.pipeline.images import load_images, unlabeled_images
from goat_jax.data.pipeline.token_ids import table_sizes
from goat_jax.data.pipeline.tokenize import encode, late_tokenizer
from goat_jax.data.pipeline.tokenize_words import EncodedWords, encode_words
from goat_jax.data.sources.formats import Row
from goat_jax.data.sources.images import IMAGE_SUFFIXES, find_images
from goat_jax.data.sources.read import read_image_source, read_source
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.language import LanguageTask, read_prompts, row_of_prompt
from goat_jax.data.tasks.multi_label import MultiLabelTask
from goat_jax.data.tasks.text import TextTask, rows_of, unlabeled_examples
from goat_jax.data.tasks.tokens import TokenTask, token_rows, unlabeled_words
from goat_jax.errors import UserError
from goat_jax.evaluation.generate_and_loglikelihood import answer_all
from goat_jax.evaluation.sampler import Prompt, Sampling
from goat_jax.files import user_path
from goat_jax.inference.predictions import Predictions
from goat_jax.pretrained.resolve import find_model
from goat_jax.training.checks import model_config_of
from goat_jax.training.data import run_tokenizer
from goat_jax.typing import Tokenizer

if TYPE_CHECKING:
    from goat_jax.inference.trained_run import TrainedRun

SPLIT = "test"
"""Split of a data set that is named without one."""

PLAIN_TEXT = (".txt", ".txt.gz")
"""Endings of files whose lines are texts, without the task's columns."""

SHORTEST = 16
"""Shortest padded length of a batch, in tokens."""


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Functions by which the runs of a task type predict.

    Attributes:
        read: (task, sources) -> the rows of some sources.
        as_row: (task, value) -> the row of a value that is not a dictionary: a text, two texts, an
            image.
        labeled: task -> its evaluation rows, in their order, and each one's label as it is written
            for people. None for tasks whose rows have no label.
        encode: (task, config, rows, their source) -> the rows as `predict` takes them. Reads no
            weights, so that a row that does not fit is refused before they are loaded.
        classes: task -> the names of the classes whose probabilities are predicted.
        batch_size: config -> the default number of rows in a batch.
        predict: (run, encoded rows, numbers of some of the rows, batch size, sampling) -> their
            predictions: (N, outputs) float32 logits, numbers of tags, or N texts.
        finish: (task, rows, result of `predict`) -> the predictions.
    """

    read: Callable[[Any, Sequence[str]], list[Row]]
    as_row: Callable[[Any, Any], Row]
    labeled: Callable[[Any], tuple[list[Row], list[Any]]] | None
    encode: Callable[[Any, RunConfig, Sequence[Row], str], Any]
    classes: Callable[[Any], tuple[str, ...]]
    batch_size: Callable[[RunConfig], int]
    predict: Callable[[TrainedRun, Any, range, int, Sampling], Any]
    finish: Callable[[Any, Sequence[Row], Any], Predictions]


def predictor_of(task: object) -> Predictor:
    """Returns the predictor of a task."""
    return PREDICTORS[type(task)]


def _read_rows(task: TextTask | LanguageTask, sources: Sequence[str]) -> list[Row]:
    """Reads sources of rows; each line of a plain text file is a text or a prompt of the task."""
    rows: list[Row] = []
    for source in sources:
        some = read_source(source, SPLIT)
        if source.lower().endswith(PLAIN_TEXT):
            some = [predictor_of(task).as_row(task, row["text"]) for row in some]
        rows += some
    return rows


def _read_images(task: ImageTask, sources: Sequence[str]) -> list[Row]:
    """Reads image files and folders of them, in any depth, or a source of rows with images."""
    paths = [user_path(source) for source in sources]
    if all(path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES for path in paths):
        return [{task.image: str(path)} for path in find_images(paths)]
    rows = [read_image_source(source, SPLIT, task.image) for source in sources]
    return [row for some in rows for row in some]


def _labeled_texts(task: TextTask) -> tuple[list[Row], list[Any]]:
    found = [(row, where) for _, row, where in rows_of(task, "evaluation")]
    labels = task.label_array([task.label_of(row, where) for row, where in found]).tolist()
    return [row for row, _ in found], [task.label_name(label) for label in labels]


def _labeled_images(task: ImageTask) -> tuple[list[Row], list[Any]]:
    images = load_images(task, "evaluation")
    labels = [task.labels[label] for label in images.labels.tolist()]
    return [images.rows[number] for number in images.numbers], labels


def _labeled_words(task: TokenTask) -> tuple[list[Row], list[Any]]:
    found = token_rows(task, "evaluation")
    tags = [[task.labels[tag] for tag in task.tags_of(row, where)] for row, where in found]
    return [row for row, _ in found], tags


def _text_row(task: TextTask, value: object) -> Row:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) != len(task.text):
        raise UserError(
            f"task {task.name} reads the columns {', '.join(task.text)}: give a text for each, or "
            "a dictionary"
        )
    return dict(zip(task.text, texts, strict=True))


def _words_row(task: TokenTask, value: object) -> Row:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise UserError(f"task {task.name}: give a list of words, a text, or a dictionary")
    return {task.tokens: list(words)}


def _prompt_row(task: LanguageTask, value: object) -> Row:
    texts = value if isinstance(value, list | tuple) else [value]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise UserError(f"task {task.name}: give the text of a prompt, or a dictionary")
    return row_of_prompt(task, texts[0])


def _image_row(task: ImageTask, value: object) -> Row:
    return {task.image: str(value) if isinstance(value, Path) else value}


def _encode_texts(task: TextTask, config: RunConfig, rows: Sequence[Row], source: str) -> Rows:
    return _tokenized(encode, unlabeled_examples(task, rows, source), config)


def _encode_words(task: TokenTask, config: RunConfig, rows: Sequence[Row], source: str) -> Rows:
    return _tokenized(encode_words, unlabeled_words(task, rows, source), config)


def _tokenized(encode: Callable[[Tokenizer, Any, int], Rows], rows: Any, config: RunConfig) -> Rows:
    _, model_config = model_config_of(config)
    tokenizer = run_tokenizer(config.model)
    sizes = table_sizes(model_config, config.adapter.spec().router)
    return with_known_ids(encode(tokenizer, rows, config.train.max_length), sizes)


def _encode_images(task: ImageTask, config: RunConfig, rows: Sequence[Row], source: str) -> Rows:
    return unlabeled_images(task, rows, source, find_model(config.model.path))


def _encode_prompts(
    task: LanguageTask, config: RunConfig, rows: Sequence[Row], source: str
) -> Sequence[Prompt]:
    tokenizer = late_tokenizer(lambda: run_tokenizer(config.model))
    return read_prompts(task, rows, source, tokenizer)


def _outputs(
    run: TrainedRun, rows: Rows, numbers: range, batch_size: int, sampling: Sampling
) -> np.ndarray:
    """Returns the model's outputs for some of the rows, (N, outputs) float32, in their order."""
    del sampling
    return np.stack(list(_output_of_each(run, rows, numbers, batch_size)))


def _tags(
    run: TrainedRun, rows: EncodedWords, numbers: range, batch_size: int, sampling: Sampling
) -> list[list[int | None]]:
    """Returns the number of the tag of each word of some of the rows; None if it was cut off."""
    del sampling
    outputs = _output_of_each(run, rows, numbers, batch_size)
    return [
        [None if place < 0 else int(logits[place].argmax()) for place in rows.first_tokens[number]]
        for number, logits in zip(numbers, outputs, strict=True)
    ]


def _output_of_each(
    run: TrainedRun, rows: Rows, numbers: range, batch_size: int
) -> list[np.ndarray]:
    """Returns the model's output for each of some rows, float32, in their order."""
    trained = run.trained
    size = _batch_size(batch_size, len(rows), trained.setup.batch_parts)
    lengths = rows.lengths[numbers.start : numbers.stop]
    plan = evaluation_plan(lengths, size, padded_lengths(run.config.train.max_length))
    pending = []
    for places, length in zip(plan.rows, plan.lengths.tolist(), strict=True):
        chosen = np.where(places == FILLER, FILLER, places + numbers.start)
        batch = trained.setup.put_whole(rows.gather(chosen, length))
        pending.append(trained.setup.eval_step(trained.trainable, trained.base, batch)[1])
    outputs = itertools.chain.from_iterable(map(np.asarray, pending))
    found = zip(plan.rows.ravel().tolist(), outputs, strict=True)
    ordered = {place: np.asarray(output, np.float32) for place, output in found}
    return [ordered[place] for place in range(len(numbers))]


def _batch_size(size: int, count: int, parts: int = 1) -> int:
    """Returns the batch size for some rows: a small one if they do not fill a whole batch.

    Args:
        size: the size of a whole batch.
        count: the number of rows.
        parts: the number of parts that the mesh partitions a batch into.

    >>> _batch_size(32, 5), _batch_size(32, 5, parts=3), _batch_size(32, 100)
    (8, 9, 32)
    """
    return min(size, -(-(1 << (count - 1).bit_length()) // parts) * parts)


def padded_lengths(most: int) -> tuple[int, ...]:
    """Returns the lengths that batches are padded to: doubling, so few for any rows.

    They do not depend on the rows, so that a step compiled for some serves for others.

    >>> padded_lengths(100)
    (16, 32, 64, 100)
    """
    lengths, length = [], SHORTEST
    while length < most:
        lengths.append(length)
        length *= 2
    return (*lengths, most)


def _answers(
    run: TrainedRun, prompts: Sequence[Prompt], numbers: range, batch_size: int, sampling: Sampling
) -> list[str]:
    size = _batch_size(batch_size, len(prompts))
    batch = [prompts[number] for number in numbers]
    return [answer.text.strip() for answer in answer_all(run.generator, batch, sampling, size)]


def _classified(
    task: TextTask | ImageTask, rows: Sequence[Row], outputs: np.ndarray
) -> Predictions:
    if not task.labels:
        return Predictions(rows, "value", outputs[:, 0])
    labels = np.array(task.labels)[outputs.argmax(-1)]
    return Predictions(rows, "label", labels, task.labels, np.asarray(jax.nn.softmax(outputs)))


def _multi_labeled(task: MultiLabelTask, rows: Sequence[Row], outputs: np.ndarray) -> Predictions:
    labels = np.empty(len(outputs), object)
    labels[:] = [task.label_name(logits > 0) for logits in outputs]
    return Predictions(rows, "label", labels, task.labels, np.asarray(jax.nn.sigmoid(outputs)))


def _tagged(task: TokenTask, rows: Sequence[Row], tags: list[list[int | None]]) -> Predictions:
    names = np.empty(len(tags), object)
    names[:] = [[None if tag is None else task.labels[tag] for tag in each] for each in tags]
    return Predictions(rows, "tags", names)


def _answered(task: LanguageTask, rows: Sequence[Row], answers: list[str]) -> Predictions:
    del task
    return Predictions(rows, "answer", np.array(answers, object))


_TEXT = Predictor(
    read=_read_rows,
    as_row=_text_row,
    labeled=_labeled_texts,
    encode=_encode_texts,
    classes=lambda task: task.labels,
    batch_size=lambda config: config.train.eval_batch_size,
    predict=_outputs,
    finish=_classified,
)
_LANGUAGE = Predictor(
    read=_read_rows,
    as_row=_prompt_row,
    labeled=None,
    encode=_encode_prompts,
    classes=lambda task: (),
    batch_size=lambda config: 16,
    predict=_answers,
    finish=_answered,
)

PREDICTORS: dict[type, Predictor] = {
    TextTask: _TEXT,
    ImageTask: dataclasses.replace(
        _TEXT,
        read=_read_images,
        as_row=_image_row,
        labeled=_labeled_images,
        encode=_encode_images,
    ),
    MultiLabelTask: dataclasses.replace(_TEXT, finish=_multi_labeled),
    TokenTask: dataclasses.replace(
        _TEXT,
        as_row=_words_row,
        labeled=_labeled_words,
        encode=_encode_words,
        classes=lambda task: (),
        predict=_tags,
        finish=_tagged,
    ),
    LanguageTask: _LANGUAGE,
    EvalTask: _LANGUAGE,
}
"""Class of a task -> its predictor."""


EXPECTED = "expected"
"""Name of the column with the label of an evaluation row."""


def labeled_rows(task: Any) -> list[Row]:
    """Returns a task's evaluation rows, each with its class name or value as a further column.

    Raises:
        UserError: the rows have no labels.
    """
    labeled = predictor_of(task).labeled
    if labeled is None:
        raise UserError(
            f"task {task.name} has no labels to write: goat-jax predict writes the answers, and "
            "goat-jax evaluate --task those to an eval task"
        )
    rows, labels = labeled(task)
    column = EXPECTED
    while any(column in row for row in rows):
        column += "_"
    return [dict(row) | {column: label} for row, label in zip(rows, labels, strict=True)]


def sampling_of(task: object, **settings: Any) -> Sampling:
    """Returns sampling settings; those that are not given are the task's, if it has them."""
    of_task = {
        name: getattr(task, name) for name in ("max_new_tokens", "stop") if hasattr(task, name)
    }
    return Sampling(**of_task | settings)
