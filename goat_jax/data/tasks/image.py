"""`ImageTask`: image classification, and tasks over local image sets."""

import math
from dataclasses import dataclass
from pathlib import Path

from goat_jax.data.sources.images import class_names
from goat_jax.data.tasks.columns import check_scoring
from goat_jax.data.tasks.splits import check_held_out, check_limits
from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.validation.fields import check_fields

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's per-channel normalization (Radford et al., 2021; values of its published processor)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ON_BAD_IMAGE = ("error", "skip")
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Folder in which Debian's package dataset-fashion-mnist installs its files."""

CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class ImageTask:
    """Image classification.

    Attributes:
      name: the task's name in reports.
      train: the source of the training rows (`goat_jax.data.sources.read`).
      evaluation: the source of the evaluation rows.
      image: the column with a path, a file's bytes, or uint8 values (H, W[, 1 or 3]).
      label: the name of the label column.
      labels: the class names in the order of their ids.
      metrics: names of classification metrics in `METRICS`; the first one is the primary
        metric.
      data_dir: TFDS's folder, or the folder that relative paths start from, also those in the
        image column.
      train_limit: the largest number of training rows, evenly spaced over the source.
      evaluation_limit: the largest number of evaluation rows, evenly spaced over the source.
      held_out: the number of rows of the training source that are held out for evaluation, with the
        same share of each class; if above 0, `evaluation` must be the same source.
      image_size: the side in pixels of the model's square input; None: the checkpoint's size.
      mean: the mean subtracted from each channel; None: the checkpoint's.
      std: the standard deviation each channel is then divided by; None: the checkpoint's.
      train_crop: the smallest and largest fraction of an image's area in a random training crop;
        None: the evaluation view.
      train_ratio: the range of a crop's width / height before it is resized to the input's shape.
      flip: whether to mirror training images left to right with probability 1/2.
      on_bad_image: the handling of images that cannot be decoded: `error`, or `skip`, which decodes
        all images at the start.
      prompt: the template of a zero-shot head's text, with ``{}`` for the class name.
      written: the class names that the rows use, in the order of `labels`, if they are neither
        these names nor ids.
      id: the column with row ids, to detect rows that are in both splits; None: rows are compared
        by their image.

    Raises UserError if the fields do not fit together.

    >>> ImageTask("pets", "a", "b", labels=("cat", "dog"), on_bad_image="ignore")
    Traceback (most recent call last):
    goat_jax.errors.UserError: task pets: on_bad_image 'ignore': use one of error, skip
    """

    name: str
    train: str
    evaluation: str
    image: str = "image"
    label: str = "label"
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    data_dir: str | None = None
    train_limit: int | None = None
    evaluation_limit: int | None = None
    held_out: int = 0
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    train_crop: tuple[float, float] | None = (0.9, 1.0)
    train_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    on_bad_image: str = "error"
    prompt: str = "a photo of a {}"
    written: tuple[str, ...] = ()
    id: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "task.")
        if not self.labels:
            raise UserError(f"task {self.name}: no class names: give two or more labels")
        check_scoring(self.name, self.labels, self.metrics)
        check_limits(self.name, self.train_limit, self.evaluation_limit)
        check_held_out(self)
        for problem in self._problems():
            raise UserError(f"task {self.name}: {problem}")

    def _problems(self) -> list[str]:
        problems = []
        if self.image_size is not None and self.image_size < 1:
            problems.append(f"image_size {self.image_size}: give 1 or more")
        mean, std = self.mean or CLIP_MEAN, self.std or CLIP_STD
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != 3 or len(std) != 3 or not finite or not all(value > 0 for value in std):
            problems.append(f"mean {mean}, std {std}: give three each, std above 0")
        if self.train_crop and not _is_range(self.train_crop, most=1.0):
            problems.append(
                f"train_crop {self.train_crop}: give two shares, 0 < least <= most <= 1"
            )
        if not _is_range(self.train_ratio):
            problems.append(f"train_ratio {self.train_ratio}: give two ratios, 0 < least <= most")
        if self.written and len(self.written) != len(self.labels):
            problems.append(f"{len(self.written)} written names for {len(self.labels)} labels")
        if self.on_bad_image not in ON_BAD_IMAGE:
            problems.append(
                f"on_bad_image {self.on_bad_image!r}: use one of {', '.join(ON_BAD_IMAGE)}"
            )
        return problems


def _is_range(values: tuple[float, ...], most: float = math.inf) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1] <= most


def image_files(
    train: str,
    evaluation: str,
    image: str = "image",
    label: str = "label",
    labels: tuple[str, ...] = (),
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    name: str = "image_files",
    data_dir: str | None = None,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
    held_out: int = 0,
    image_size: int | None = None,
    flip: bool = False,
    on_bad_image: str = "error",
) -> ImageTask:
    """Makes a task from the user's images (or any two sources); arguments as in `ImageTask`.

    If `train` is a folder with one subfolder per class and `labels` is empty, the subfolders give
    the class names.

    >>> image_files("train.jsonl", "dev.jsonl", labels=("cat", "dog")).image
    'image'
    """
    folder = Path(data_dir or "") / user_path(train)
    if not labels and folder.is_dir():
        labels = class_names(folder)
    return ImageTask(
        name=name,
        train=train,
        evaluation=evaluation,
        image=image,
        label=label,
        labels=labels,
        metrics=metrics,
        data_dir=data_dir,
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
        held_out=held_out,
        image_size=image_size,
        flip=flip,
        on_bad_image=on_bad_image,
    )


def digits(
    *,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
    image_size: int = 56,
) -> ImageTask:
    """Makes the task of scikit-learn's handwritten digits, 8 x 8 pixels, 1,437 train and 360 test.

    >>> digits().evaluation
    'digits:test'
    """
    return ImageTask(
        name="digits",
        train="digits:train",
        evaluation="digits:test",
        labels=tuple(map(str, range(10))),
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
        image_size=image_size,
    )


def fashion_mnist(
    *,
    folder: str = FASHION_MNIST,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
    image_size: int = 56,
) -> ImageTask:
    """Makes the Fashion-MNIST task (Xiao, Rasul and Vollgraf, 2017).

    It has 60,000 training and 10,000 test images of clothes, 28 x 28 pixels, in ten classes.

    Args:
      folder: the folder with the four idx files, as Debian's package dataset-fashion-mnist
        installs them.
      train_limit: the largest number of training rows, as in `ImageTask`.
      evaluation_limit: the largest number of evaluation rows, as in `ImageTask`.
      image_size: the side in pixels of the model's square input.

    >>> fashion_mnist(folder="data/fashion").train
    'idx:data/fashion@train'
    """
    return ImageTask(
        name="fashion_mnist",
        train=f"idx:{folder}@train",
        evaluation=f"idx:{folder}@test",
        labels=CLOTHES,
        train_limit=train_limit,
        evaluation_limit=evaluation_limit,
        image_size=image_size,
    )
