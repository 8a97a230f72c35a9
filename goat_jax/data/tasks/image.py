"""What an image task is, and the tasks whose data are at hand."""

import math
from dataclasses import dataclass
from pathlib import Path

from goat_jax.data.sources.images import class_names
from goat_jax.data.tasks.text import check_limits, check_scoring
from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.validation.fields import check_fields

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's images were normalised with (Radford et al., 2021; in its published processor)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ON_BAD_IMAGE = ("error", "skip")
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts its files."""

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
    """Classification of an image.

    Attributes:
      name: how reports call it.
      train: the source of the training rows (`goat_jax.data.sources.read`).
      evaluation: the source of the evaluation rows.
      image: the column with a path, the bytes of a file, or uint8 values (H, W[, 1 or 3]).
      label: the label's column name.
      labels: class names in the order of their ids.
      metrics: names from `METRICS` of classification, the first is the one that decides.
      data_dir: TFDS's folder, or where relative paths start, those in the image column too.
      train_limit: at most so many training rows, evenly spaced over the source.
      evaluation_limit: at most so many evaluation rows, likewise.
      image_size: pixels of a side of what the model sees; None: as the checkpoint was trained.
      mean: taken off each channel; None: the checkpoint's own.
      std: what each channel is then divided by; None: the checkpoint's own.
      train_crop: the least and largest share of an image's area that training sees; None: the
        same view as in evaluation.
      train_ratio: the range of a crop's width / height before it is made square.
      flip: mirror every other training image at random, left to right.
      on_bad_image: `error`, or `skip` images that cannot be decoded, which decodes all at the
        start.
      written: what the rows call the classes, if not by their names or ids; in the order of labels.
      id: a column that names rows, to tell those that are in both splits; None: by the image.
      prompt: what a zero-shot head reads of a class, its name in the place of ``{}``.

    Raises UserError where these do not fit together.

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
            raise UserError(f"task {self.name}: no class names: give labels, two or more")
        check_scoring(self.name, self.labels, self.metrics)
        check_limits(self.name, self.train_limit, self.evaluation_limit)
        for problem in self._problems():
            raise UserError(f"task {self.name}: {problem}")

    def _problems(self) -> list[str]:
        found = []
        if self.image_size is not None and self.image_size < 1:
            found.append(f"image_size {self.image_size}: give 1 or more")
        mean, std = self.mean or CLIP_MEAN, self.std or CLIP_STD
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != 3 or len(std) != 3 or not finite or not all(value > 0 for value in std):
            found.append(f"mean {mean}, std {std}: give three each, std above 0")
        if self.train_crop and not _is_range(self.train_crop, most=1.0):
            found.append(f"train_crop {self.train_crop}: give two shares, 0 < least <= most <= 1")
        if not _is_range(self.train_ratio):
            found.append(f"train_ratio {self.train_ratio}: give two ratios, 0 < least <= most")
        if self.written and len(self.written) != len(self.labels):
            found.append(f"{len(self.written)} written names for {len(self.labels)} labels")
        if self.on_bad_image not in ON_BAD_IMAGE:
            found.append(
                f"on_bad_image {self.on_bad_image!r}: use one of {', '.join(ON_BAD_IMAGE)}"
            )
        return found


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
    image_size: int | None = None,
    flip: bool = False,
    on_bad_image: str = "error",
) -> ImageTask:
    """A task over the user's own images (or any two sources); arguments as in `ImageTask`.

    If `train` is a folder with a subfolder for each class, these give the class names.

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
    """Handwritten digits of 8 x 8 pixels that scikit-learn brings, 1,437 and 360 of them.

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
    """Clothes of 28 x 28 pixels in ten classes (Xiao, Rasul and Vollgraf, 2017), 60,000 and 10,000.

    Args:
      folder: has the four idx files, as the Debian package dataset-fashion-mnist installs them.

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
