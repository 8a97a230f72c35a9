"""The seven image sets of the paper's table 1: sources, splits and class names.

The splits are those of "Editing Models with Task Arithmetic" (Ilharco et al., arXiv 2212.04089),
whose numbers of epochs the paper uses. Official splits are used where a set has them:

- Cars, SVHN (without its extra images), GTSRB: training and test split. GTSRB's training images
  are the 26,640 of its first phase, as in torchvision, not the 39,209 of the final one.
- DTD: training and validation split of the first of its ten partitions, and its test split.
- SUN397: the first of its ten partitions, 50 and 50 images of each class.
- EuroSAT (21,600 and 2,700 rows) and RESISC45 (18,900 and 6,300 rows) have no official splits. The
  rows are taken in the fixed order in which tensorflow_datasets shuffles them by name. Other
  projects have drawn other splits, so scores differ by chance.

Example row, from EuroSAT: an image of 64 x 64 pixels, AnnualCrop_1.jpg, and label 0, "AnnualCrop".
The text for a zero-shot head is "a photo of a annual crop land".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from goat_jax.data.sources.formats import find_split
from goat_jax.data.sources.read import OR
from goat_jax.data.tasks.image import ImageTask
from goat_jax.errors import UserError
from goat_jax.files import user_path

CLASSES = Path(__file__).parent / "classes"


@dataclass(frozen=True)
class VisionRow:
    """Sources of one image set.

    Attributes:
      title: the set's title in the paper's tables.
      train: the training split's name in tensorflow_datasets (SVHN is svhn_cropped there, Cars is
        cars196).
      test: the test split's name in tensorflow_datasets.
      hub: the Hugging Face hub repository (and its config) with these splits.
      rows: the number of training rows and of test rows.

    >>> VISION["dtd"].rows
    (3760, 1880)
    """

    title: str
    train: str
    test: str
    hub: str
    rows: tuple[int, int]


VISION: dict[str, VisionRow] = {
    "cars": VisionRow(
        "Cars", "cars196@train", "cars196@test", "tanganke/stanford_cars", (8144, 8041)
    ),
    "dtd": VisionRow("DTD", "dtd@train+validation", "dtd@test", "tanganke/dtd", (3760, 1880)),
    "eurosat": VisionRow(
        "EuroSAT",
        "eurosat/rgb@train[:21600]",
        "eurosat/rgb@train[24300:]",
        "tanganke/eurosat",
        (21600, 2700),
    ),
    "gtsrb": VisionRow("GTSRB", "gtsrb@train", "gtsrb@test", "tanganke/gtsrb", (26640, 12630)),
    "resisc45": VisionRow(
        "RESISC45",
        "resisc45@train[:18900]",
        "resisc45@train[25200:]",
        "tanganke/resisc45",
        (18900, 6300),
    ),
    "sun397": VisionRow(
        "SUN397",
        "sun397/standard-part1-120k@train",
        "sun397/standard-part1-120k@test",
        "tanganke/sun397",
        (19850, 19850),
    ),
    "svhn": VisionRow(
        "SVHN",
        "svhn_cropped@train",
        "svhn_cropped@test",
        "ufldl-stanford/svhn/cropped_digits",
        (73257, 26032),
    ),
}
"""Name of a task -> its set, in the order of the paper's table."""


@cache
def vision_classes(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns a set's class names in the order of their ids: as written in its files, and in words.

    >>> vision_classes("resisc45")[0][2], vision_classes("resisc45")[1][2]
    ('baseball_diamond', 'baseball diamond')
    """
    lines = (CLASSES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    written, words = zip(*(line.split("\t") for line in lines), strict=True)
    return written, words


def vision(name: str, folder: str | Path | None = None, **options: Any) -> ImageTask:
    """Makes the task of one of the paper's image sets.

    Args:
      name: a key of `VISION`.
      folder: the folder with ``train`` and ``test``, or ``NAME/train`` and ``NAME/test``: folders
        with one subfolder per class, or files in any format of `FORMATS`. None: the rows come from
        tensorflow_datasets (`goat-jax data prepare NAME` builds them), or else from the hub, if the
        package datasets is installed.
      options: other fields of `ImageTask`.

    >>> vision("dtd").train
    'tfds:dtd@train+validation || hf:tanganke/dtd@train'
    """
    if name not in VISION:
        raise UserError(f"unknown image set {name!r}: use one of {', '.join(VISION)}")
    row = VISION[name]
    written, words = vision_classes(name)
    if folder is None:
        hub = f"hf:{row.hub}"
        train, test = (
            f"tfds:{source}{OR}{hub}@{split}"
            for source, split in ((row.train, "train"), (row.test, "test"))
        )
    else:
        train, test = (local_images(user_path(folder), name, s) for s in ("train", "test"))
    return ImageTask(name, train, test, labels=words, written=written, **options)


def local_images(folder: Path, name: str, split: str) -> str:
    """Returns the path of a split's folder of images, or of its file.

    >>> local_images(Path("nowhere"), "dtd", "train")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere: no such folder
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    roots = [folder / name, folder]
    for root in roots:
        if (root / split).is_dir():
            return str((root / split).resolve())
    try:
        return find_split(roots, split)
    except UserError:
        raise UserError(
            f"{folder} has no {split} split: give {split}/CLASS/image files, or a file "
            f"{split}.jsonl, there or in {folder / name}"
        ) from None
