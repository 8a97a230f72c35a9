"""The seven image sets of the paper's table 1: sources, splits and class names.

The splits are those of "Editing Models with Task Arithmetic" (Ilharco et al., arXiv 2212.04089),
whose numbers of epochs the paper has. Where a set has official splits these are used:

- Cars, SVHN (without its extra images), GTSRB: training and test split. GTSRB's training images
  are the 26,640 of its first phase, as torchvision has them, not the 39,209 of the final one.
- DTD: training and validation split of the first of its ten partitions, and its test split.
- SUN397: the first of its ten partitions, 50 and 50 images of each class.
- EuroSAT and RESISC45 have none: 21,600 and 2,700, 18,900 and 6,300 rows in the order in which
  tensorflow_datasets shuffles them by their names, which never changes. They are other rows than in
  lists that other projects have drawn, so scores differ by chance.

A row, of EuroSAT: an image of 64 x 64 pixels, AnnualCrop_1.jpg, and label 0, "AnnualCrop". A
zero-shot head reads "a photo of a annual crop land".
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
    """What differs between the sets.

    Attributes:
      title: as in the paper's tables.
      train, test: of tensorflow_datasets (SVHN's name there has "cropped", Cars' the year).
      hub: a repository on the Hugging Face hub (and its config) with these splits.
      rows: of both splits.

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
    """The classes of a set in the order of their ids: as its files write them, and in words.

    >>> vision_classes("resisc45")[0][2], vision_classes("resisc45")[1][2]
    ('baseball_diamond', 'baseball diamond')
    """
    lines = (CLASSES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    written, words = zip(*(line.split("\t") for line in lines), strict=True)
    return written, words


def vision(name: str, folder: str | Path | None = None, **options: Any) -> ImageTask:
    """One of the paper's image sets.

    Args:
      name: a key of `VISION`.
      folder: holds ``train`` and ``test``, or ``NAME/train`` and ``NAME/test``: folders with a
        subfolder for each class, or files in any format of `FORMATS`. None: the rows come from
        tensorflow_datasets (`goat-jax data prepare NAME` makes them), else from the hub, if the
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
    """A split's folder of images, or its file.

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
            f"{folder}: no {split} split in it: give {split}/CLASS/image files, or a file "
            f"{split}.jsonl, there or in {folder / name}"
        ) from None
