"""Sources of images: folders with one subfolder per class, MNIST's idx files, sklearn's digits."""

import gzip
import hashlib
import math
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from goat_jax.data.prepare.archives import MEMBER_BYTES
from goat_jax.data.sources.formats import Row
from goat_jax.errors import Notice, UserError
from goat_jax.extras import import_extra

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

IDX_SPLITS = {"train": "train", "test": "t10k", "validation": "t10k"}
"""Split -> prefix of its file names."""

DIGITS_TEST_ROWS = 360


def _folders(folder: Path) -> list[Path]:
    names = (p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")
    return sorted(path for path in names if path.is_dir())


def _images(paths: Iterable[Path], below: Path) -> list[Path]:
    """Returns the image files among some paths, sorted, without hidden files (macOS adds some)."""

    def is_image(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(below).parts)
        return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()

    return sorted(filter(is_image, paths))


def class_names(folder: Path) -> tuple[str, ...]:
    """Returns the names of a folder's subfolders, sorted.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "dog").mkdir(), (folder / "cat").mkdir()
    (None, None)
    >>> class_names(folder)
    ('cat', 'dog')
    """
    return tuple(path.name for path in _folders(folder))


def read_image_folder(folder: Path) -> list[Row]:
    """Returns rows `{image, label}` of a folder with one subfolder per class, sorted by path.

    The image is an absolute path. The label is the subfolder's name, also for images in nested
    folders. Hidden files and files without one of `IMAGE_SUFFIXES` are ignored. Images beside the
    subfolders have no class and are left out with a warning.

    Raises UserError if there is no subfolder, or if a subfolder has no images.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "cat").mkdir()
    >>> (folder / "cat" / "a.png").touch()
    >>> read_image_folder(folder)[0]["label"]
    'cat'
    """
    rows: list[Row] = []
    for part in _folders(folder):
        images = _images(part.rglob("*"), part)
        if not images:
            raise UserError(f"{part} has no image ({', '.join(IMAGE_SUFFIXES)}): remove it")
        rows += [{"image": str(path.absolute()), "label": part.name} for path in images]
    if not rows:
        raise UserError(
            f"{folder}: no subfolders: give a folder with a subfolder of images for each class"
        )
    if loose := _images(folder.iterdir(), folder):
        warnings.warn(
            f"{folder}: {loose[0].name} and {len(loose) - 1} other images are in no class "
            "subfolder and are left out",
            Notice,
            stacklevel=2,
        )
    return rows


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Returns image files as they are given, and those below each folder, sorted.

    Raises UserError for a path that is neither, and for a folder without images.

    >>> find_images([Path("nowhere.png")])
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.png: no such file
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file")
        images = _images(path.rglob("*"), path) if path.is_dir() else [path]
        if not images:
            raise UserError(f"{path}: no image in it ({', '.join(IMAGE_SUFFIXES)})")
        files += images
    return files


def read_idx(path: Path) -> np.ndarray:
    """Reads the uint8 array of an idx file, gzipped or plain.

    The format: two zero bytes, the type (8: bytes), the number of axes, their lengths as
    big-endian 32-bit numbers, the values (LeCun, Cortes and Burges, "The MNIST database").

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two-idx1-ubyte"
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    >>> read_idx(path)
    array([7, 9], dtype=uint8)
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            axes = head[3] if len(head) == 4 else 0
            sizes = file.read(4 * axes)
            if head[:3] != b"\0\0\x08" or len(head) < 4 or len(sizes) < 4 * axes:
                raise UserError(f"{path}: not an idx file of bytes (it starts with {head!r})")
            shape = np.frombuffer(sizes, ">u4").tolist()
            count = math.prod(shape)
            if count > MEMBER_BYTES:
                raise UserError(f"{path}: {count:,} values in shape {tuple(shape)}: not read")
            data = file.read(count + 1)  # one more would show
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}: gzip data is truncated or damaged: fetch it again") from None
    if len(data) != count:
        more = "more than " if len(data) > count else ""
        count_text = f"{more}{min(len(data), count)}"
        raise UserError(f"{path}: {count_text} values for shape {tuple(shape)}: fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_idx_folder(folder: Path, split: str) -> list[Row]:
    """Returns rows `{image, label}` of MNIST-style idx files; images are (H, W) uint8.

    Args:
      folder: the folder with the files, gzipped or plain, such as `train-images-idx3-ubyte.gz`.
      split: `train` or `test` (`validation` means the test files).

    >>> read_idx_folder(Path("nowhere"), "train")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere: no such folder
    """
    if split not in IDX_SPLITS:
        raise UserError(f"idx:{folder}@{split}: no such split: use @train or @test")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    start = IDX_SPLITS[split]
    images = read_idx(_idx_file(folder, f"{start}-images-idx3-ubyte"))
    labels = read_idx(_idx_file(folder, f"{start}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{folder}: {start} images {images.shape} and labels {labels.shape} do not match"
        )
    pairs = zip(images, labels.tolist(), strict=True)
    return [{"image": image, "label": label} for image, label in pairs]


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise UserError(f"{folder} has neither {name}.gz nor {name}")


def read_digits(split: str) -> list[Row]:
    """Returns rows `{image, label}` of scikit-learn's digits: `train` (1,437) or `test` (360).

    Images are (8, 8) uint8, 0 to 255. A hash of each row's number fixes which rows are test rows.
    Raises UserError for another split, and if scikit-learn (an extra) is not installed.

    >>> read_digits("dev")
    Traceback (most recent call last):
    goat_jax.errors.UserError: digits:dev: no such split: use digits:train or digits:test
    """
    if split not in ("train", "test"):
        raise UserError(f"digits:{split}: no such split: use digits:train or digits:test")
    bunch = import_extra("sklearn.datasets", "digits").load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    order = _hashed_order(len(images))
    chosen = order[:DIGITS_TEST_ROWS] if split == "test" else order[DIGITS_TEST_ROWS:]
    return [{"image": images[i], "label": int(bunch.target[i])} for i in chosen]


def _hashed_order(count: int) -> list[int]:
    """Returns a permutation that does not depend on numpy's version."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"digits {i}".encode()).digest())
