"""Image rows: decoded, cropped and normalized when a batch is collated."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from goat_jax.data.pipeline.dataset import Batch, Draw, fill_places
from goat_jax.data.pipeline.image_transforms import (
    array_image,
    crop_box,
    mirrored,
    resized_crop,
    to_rgb,
)
from goat_jax.data.pipeline.image_view import ImageView, view_of
from goat_jax.data.pipeline.overlap import mark_of
from goat_jax.data.sources.formats import Row
from goat_jax.data.sources.read import read_image_source
from goat_jax.data.tasks.columns import read_column, read_label
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.splits import DEFAULT_SPLITS, chosen_rows, source_of
from goat_jax.errors import UserError, first_line
from goat_jax.extras import import_extra
from goat_jax.files import user_path

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Dataset of N labeled images.

    Attributes:
      task: the image task, which names the columns and sets the training crops.
      view: the evaluation preprocessing; training uses its size and normalization.
      source: the source string, for error messages.
      rows: the rows of the source.
      numbers: the indices of the N images in `rows`.
      labels: the class ids, [N] int32.
      dropped: the number of rows left out because their image cannot be decoded.
      marks: a digest of each image that identifies it.
      lengths: the row lengths, [N] int32, all 1: every batch has the same shape.
      truncated: the number of truncated rows, always 0.

    >>> task, view = ImageTask("dots", "", "", labels=("a", "b")), ImageView(shorter=2, crop=(2, 2))
    >>> images = [{"image": np.zeros((4, 4), np.uint8)}]
    >>> rows = ImageRows(task, view, "here", images, [0], np.array([1]))
    >>> rows.gather(np.array([0, -1]), 1)["pixel_values"].shape
    (2, 2, 2, 3)
    """

    task: ImageTask
    view: ImageView
    source: str
    rows: Sequence[Row] = field(repr=False)
    numbers: Sequence[int] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    dropped: int = 0
    marks: tuple[bytes, ...] = field(default=(), repr=False)
    lengths: np.ndarray = field(init=False, repr=False)
    truncated: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.ones(len(self.labels), np.int32))

    @property
    def lookups(self) -> dict[str, list[np.ndarray]]:
        """Empty: images have no ids to look up."""
        return {}

    @property
    def contents(self) -> tuple[Any, ...]:
        """Labels, and digests of the images or their ids; the pixels would be too much data."""
        return self.labels, self.marks

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: np.ndarray, length: int, draw: Draw = None) -> Batch:
        """Collates one batch.

        Args:
          rows: the row numbers [B]; a `FILLER` position repeats the last real row with weight 0.
          length: the padded length, not used: every image has length 1.
          draw: the numbers that seed the training crops; None for the evaluation view.

        A crop depends only on `draw` and its row's number, so several processes that load a batch
        together get the same crops as one process would.

        Returns `pixel_values` [B, height, width, 3] float32, `labels` [B] int32 and
        `weights` [B] float32. Raises UserError for an image that cannot be decoded.
        """
        del length
        numbers, weights = fill_places(rows)
        return {
            "pixel_values": np.stack([self.pixels(int(number), draw) for number in numbers]),
            "labels": self.labels[numbers],
            "weights": weights,
        }

    def pixels(self, number: int, draw: Draw = None) -> np.ndarray:
        """Returns the model's input for one row, (height, width, 3) float32."""
        task, place = self.task, self.numbers[number]
        where = f"{self.source}: row {place + 1}"
        image = decode_image(self.rows[place].get(task.image), where, task.data_dir)
        if draw is None:
            viewed = self.view.whole(image)
        else:
            rng = np.random.default_rng((*draw, number))
            viewed = training_view(image, task, self.view, rng)
        return self.view.numbers(viewed)


def training_view(
    image: "Image.Image", task: ImageTask, view: ImageView, rng: np.random.Generator
) -> "Image.Image | np.ndarray":
    """Crops an image at random to a view's size and mirrors it at random, as the task specifies.

    >>> from PIL import Image
    >>> task, view = ImageTask("dots", "", "", labels=("a", "b")), ImageView(shorter=2, crop=(2, 2))
    >>> training_view(Image.new("RGB", (5, 4)), task, view, np.random.default_rng(0)).size
    (2, 2)
    """
    if task.train_crop is None:
        cropped = view.whole(image)
    else:
        box = crop_box(image.height, image.width, rng, task.train_crop, task.train_ratio)
        cropped = resized_crop(image, box, view.size, view.resample)
    return mirrored(cropped) if task.flip and rng.random() < 0.5 else cropped


def decode_image(value: object, where: str, folder: str | Path | None = None) -> "Image.Image":
    """Decodes a path, a file's bytes or an array to an upright RGB image.

    Args:
      value: a path, a file's bytes, or uint8 values (H, W[, 1 or 3]).
      where: the source and row, for the message of a UserError.
      folder: the folder that relative paths start from.

    >>> decode_image("nowhere.png", "pets.csv: row 3")
    Traceback (most recent call last):
    goat_jax.errors.UserError: pets.csv: row 3: nowhere.png: no such file
    """
    return _read(value, where, folder, whole=True)


def check_image(value: object, where: str, folder: str | Path | None = None) -> None:
    """Checks an image as `decode_image` does, but reads only the start of a file.

    Raises UserError if the file is missing or its format unknown. Arrays are fully converted.

    >>> check_image(b"GIF87", "pets.csv: row 3")
    Traceback (most recent call last):
    goat_jax.errors.UserError: pets.csv: row 3: the image cannot be decoded (unknown format): \
repair it, or leave such images out with --task.on-bad-image skip
    """
    _read(value, where, folder, whole=False)


def _read(value: object, where: str, folder: str | Path | None, whole: bool) -> Any:
    pillow = import_extra("PIL.Image", "reading images")
    if isinstance(value, str | Path):
        value = _file(value, folder)
        if not value.is_file():
            raise UserError(f"{where}: {value}: no such file")
    elif not isinstance(value, bytes | np.ndarray):
        raise UserError(
            f"{where}: {type(value).__name__} is not an image: give a path, bytes or an array"
        )
    try:
        if isinstance(value, np.ndarray):
            return to_rgb(array_image(value))
        with pillow.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return to_rgb(image) if whole else None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # what Pillow raises depends on the format and where it is damaged
        unknown = isinstance(error, pillow.UnidentifiedImageError)
        reason = "unknown format" if unknown else first_line(error)
        name = f"{value}" if isinstance(value, Path) else "the image"
        raise UserError(
            f"{where}: {name} cannot be decoded ({reason}):"
            " repair it, or leave such images out with --task.on-bad-image skip"
        ) from None


def load_images(task: ImageTask, split: str) -> ImageRows:
    """Loads the rows of a task's `train` or `evaluation` source; batches decode images later.

    Loading reads only the start of every file, unless the task skips bad images: then each image
    is decoded once, and those that fail are left out and counted.

    The view is CLIP's with the task's settings; replace `view` for another checkpoint.

    Raises UserError naming source and row number (from 1) for a row without image or label, for a
    label that is not a class of the task, and for a file that is missing or not an image.

    >>> task = ImageTask("pets", "a.csv", "b.csv", labels=("cat", "dog"))
    >>> load_images(task, "dev")
    Traceback (most recent call last):
    goat_jax.errors.UserError: task pets has no split 'dev': use train or evaluation
    """
    source, limit = source_of(task, split)
    view = view_of(task, None)
    rows = read_image_source(source, DEFAULT_SPLITS[split], task.image, task.data_dir)
    numbers, labels, marks, problems = [], [], [], []

    def label_of(number: int) -> float:
        where = f"{source}: row {number + 1}"
        return read_label(rows[number], task.label, task.labels, where, task.written)

    for number in chosen_rows(task, split, len(rows), limit, label_of):
        row, where = rows[number], f"{source}: row {number + 1}"
        label = read_label(row, task.label, task.labels, where, task.written)
        image = read_column(row, task.image, where)
        if problem := _problem(image, where, task):
            problems.append(problem)
        else:
            numbers.append(number)
            labels.append(label)
            marks.append(_mark(row, image, where, task))
    if not numbers:
        raise problems[0] if problems else UserError(f"{source}: no rows")
    ids = np.array(labels, np.int32)
    return ImageRows(task, view, source, rows, numbers, ids, len(problems), tuple(marks))


def unlabeled_images(
    task: ImageTask, rows: Sequence[Row], source: str, model: str | Path | None
) -> ImageRows:
    """Returns rows to predict from as `ImageRows`, with 0 in place of every label.

    Args:
      task: the task, which names the image column.
      rows: one row or more; relative paths start from the current folder.
      source: the rows' source, for error messages.
      model: the checkpoint, whose preprocessing is used.

    Raises UserError naming source and row number (from 1) for a row without a readable image.
    """
    task = replace(task, data_dir=None)
    for number, row in enumerate(rows, start=1):
        where = f"{source}: row {number}"
        check_image(read_column(row, task.image, where), where)
    labels = np.zeros(len(rows), np.int32)
    return ImageRows(task, view_of(task, model), source, rows, range(len(rows)), labels)


def _mark(row: Row, image: Any, where: str, task: ImageTask) -> bytes:
    """Returns a digest that identifies an image: of its id, or else of its stored data."""
    if task.id is not None:
        return mark_of(read_column(row, task.id, where))
    return mark_of(_file(image, task.data_dir) if isinstance(image, str | Path) else image)


def _file(value: str | Path, folder: str | Path | None) -> Path:
    return Path(folder or "") / user_path(value)


def _problem(value: object, where: str, task: ImageTask) -> UserError | None:
    """Returns the error of a bad image if the task skips it; raises it otherwise."""
    check = decode_image if task.on_bad_image == "skip" else check_image
    try:
        check(value, where, task.data_dir)
    except UserError as error:
        if task.on_bad_image == "error":
            raise
        return error
    return None
