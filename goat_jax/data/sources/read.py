"""Sources: a source string names where rows come from; reading it gives a list of dictionaries.

`tfds:NAME` (or `tfds:NAME@SPLIT`) reads a TFDS data set, `reviews:train` the demo task's package,
`digits:train` scikit-learn's digits, `idx:FOLDER@train` MNIST-style idx files, and
`hf:OWNER/NAME[/CONFIG]@SPLIT` a data set of the Hugging Face hub. Anything else is the path of a
file, or of a folder with one subfolder of images per class.

Sources joined by `OR` are alternatives, tried in order until one can be read.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.data.sources.formats import FORMATS, Row
from goat_jax.data.sources.images import read_digits, read_idx_folder, read_image_folder
from goat_jax.data.sources.reviews import read_reviews
from goat_jax.errors import UserError, first_line
from goat_jax.extras import MissingExtra, import_extra
from goat_jax.files import user_path


def read_rows(path: str | Path) -> list[Row]:
    """Reads all rows of one file; the suffix (a key of `FORMATS`) selects the format.

    Raises UserError with one line for a missing file, an unknown suffix, a file without rows, or
    the first line that cannot be read (`file:line`).

    >>> read_rows("nowhere.jsonl")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.jsonl: no such file
    """
    path = Path(path)
    suffix = next((s for s in FORMATS if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise UserError(f"{path}: unknown file type: use one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        rows = FORMATS[suffix](path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    if not rows:
        raise UserError(f"{path}: the file has no rows: give it one or more")
    return rows


def read_tfds(
    name: str, split: str, data_dir: str | Path | None = None, download: bool = True
) -> list[Row]:
    """Reads rows of a TFDS data set stored as array_record, without TensorFlow.

    Args:
      name: the data set's TFDS name, such as `glue/rte` or `glue/rte:2.0.0`, or that of any data
        set prepared in data_dir.
      split: the split in TFDS's notation: `train`, `validation`, `train[:10%]` ...
      data_dir: TFDS's data folder (TFDS's default if None).
      download: whether TFDS may fetch and prepare a set that is not in data_dir.

    Returns text as str, integers as int, and other features as TFDS gives them (numpy arrays).
    Raises UserError with the first line of TFDS's error (unknown name or split, no network, data
    stored as TFRecord).

    >>> read_tfds("no_such_set", "train", download=False)
    Traceback (most recent call last):
    goat_jax.errors.UserError: tfds:no_such_set@train: Dataset no_such_set not found.
    """
    try:
        return [_plain(row) for row in _open_tfds(name, split, data_dir, download)]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"tfds:{name}@{split}: {first_line(error)}") from error


def _open_tfds(name: str, split: str, data_dir: str | Path | None, download: bool) -> Any:
    tfds = import_extra("tensorflow_datasets", f"tfds:{name}@{split}")
    import_extra("tensorflow_datasets.text", "tfds")  # older builders, glue, register there
    try:
        folder = None if data_dir is None else str(data_dir)
        return tfds.data_source(name, split=split, data_dir=folder, download=download)
    except Exception as error:  # TFDS raises from ValueError to AssertionError on bad input
        raise UserError(f"tfds:{name}@{split}: {first_line(error)}") from error


def _plain(value: Any) -> Any:
    """Converts TFDS's bytes and numpy scalars to str and numbers, also in nested features."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case bytes():
            # Bytes that are not UTF-8 stay bytes, which text columns reject.
            with contextlib.suppress(UnicodeDecodeError):
                return value.decode("utf-8")
        case np.generic():
            return value.item()
    return value


def _tfds(rest: str, split: str, data_dir: str | Path | None) -> list[Row]:
    name, chosen = _at(rest, split)
    return read_tfds(name, chosen, data_dir)


def _reviews(rest: str, split: str, data_dir: str | Path | None) -> list[Row]:
    return read_reviews(rest, data_dir)


def _digits(rest: str, split: str, data_dir: str | Path | None) -> list[Row]:
    return read_digits(rest)


def _idx(rest: str, split: str, data_dir: str | Path | None) -> list[Row]:
    folder, chosen = _at(rest, split)
    return read_idx_folder(_path(folder, data_dir), chosen)


def _hub(rest: str, split: str, data_dir: str | Path | None) -> list[Row]:
    return [_plain(row) for row in _open_hub(rest, split)]


def _open_hub(rest: str, split: str) -> Any:
    """Opens a Hugging Face hub data set; images stay as stored, a dict with their bytes."""
    name, chosen = _at(rest, split)
    owner, _, rest = name.partition("/")
    repository, _, config = rest.partition("/")
    datasets = import_extra("datasets", f"hf:{name}")
    try:
        rows = datasets.load_dataset(f"{owner}/{repository}", config or None, split=chosen)
        for column, feature in rows.features.items():
            if type(feature).__name__ == "Image":
                rows = rows.cast_column(column, datasets.Image(decode=False))
        return rows
    except Exception as error:  # http, cache, script and name errors, each of its own kind
        raise UserError(f"hf:{name}@{chosen}: {first_line(error)}") from error


def _at(rest: str, split: str) -> tuple[str, str]:
    """Splits `NAME@SPLIT` into name and split; `split` is the default if none is named."""
    name, _, chosen = rest.partition("@")
    return name, chosen or split


def _path(path: str, data_dir: str | Path | None) -> Path:
    return (Path(data_dir) if data_dir else Path()) / user_path(path)


SCHEMES: dict[str, Callable[[str, str, str | Path | None], list[Row]]] = {
    "tfds": _tfds,
    "reviews": _reviews,
    "digits": _digits,
    "idx": _idx,
    "hf": _hub,
}

OR = " || "
AND = " ++ "
"""Separators between sources: `OR` joins alternatives, `AND` concatenates the rows of several
sources into one split (`goat_jax.data.tasks.text`)."""


def read_source(source: str, split: str, data_dir: str | Path | None = None) -> list[Row]:
    """Reads the rows of a source string: `SCHEME:...` with a key of `SCHEMES`, else a path.

    Args:
      source: the source, such as `tfds:glue/rte`, `tfds:glue/mnli@validation_matched`,
        `reviews:test` or `data/dev.csv`.
      split: the split if a `tfds:`, `idx:` or `hf:` source does not name one after `@`.
      data_dir: TFDS's folder, the package cache, or the folder that relative paths start from.

    >>> read_source("dev.xlsx", "train")
    Traceback (most recent call last):
    goat_jax.errors.UserError: dev.xlsx: unknown file type: use one of .jsonl, .jsonl.gz, .json, \
.json.gz, .csv, .csv.gz, .tsv, .tsv.gz, .txt, .txt.gz, .npz, .parquet
    """
    return _first(source, lambda one: _read_one(one, split, data_dir))


def _first(source: str, read: Callable[[str], Any]) -> Any:
    """Reads the first of several sources that can be read; if none can, one error lists all."""
    problems = []
    for one in source.split(OR):
        try:
            return read(one)
        except UserError as error:
            problems.append(str(error))
    raise UserError("; ".join(problems))


def _read_one(source: str, split: str, data_dir: str | Path | None) -> list[Row]:
    scheme, _, rest = source.partition(":")
    if rest and scheme in SCHEMES:
        return SCHEMES[scheme](rest, split, data_dir)
    path = _path(source, data_dir)
    return read_image_folder(path) if path.is_dir() else read_rows(path)


def read_image_source(
    source: str, split: str, column: str, data_dir: str | Path | None = None
) -> Sequence[Row]:
    """Reads a source of images: as `read_source`, but `tfds:` and `hf:` rows are read on access.

    Their images are the stored bytes, since a large data set's decoded images do not fit into
    memory.

    Args:
      source: the source, as for `read_source`.
      split: the split, as for `read_source`.
      column: the column that holds the image; other columns stay as the source gives them.
      data_dir: the folder, as for `read_source`.

    >>> read_image_source("nowhere.jsonl", "train", "image")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.jsonl: no such file
    """
    return _first(source, lambda one: _read_images(one, split, column, data_dir))


def _read_images(
    source: str, split: str, column: str, data_dir: str | Path | None
) -> Sequence[Row]:
    scheme, _, rest = source.partition(":")
    if scheme == "hf":
        return _HubImages(_open_hub(rest, split), column)
    if scheme != "tfds":
        return [_with_stored_images(row) for row in _read_one(source, split, data_dir)]
    name, chosen = _at(rest, split)
    try:
        # No download: TFDS would fetch gigabytes first and then need TensorFlow to read the images.
        rows = _open_tfds(name, chosen, data_dir, download=False)
    except MissingExtra:
        raise
    except UserError as error:
        where = "TFDS's folder" if data_dir is None else data_dir
        raise UserError(
            f"{error} ({where} has no data set of that name, split and form: goat-jax data prepare "
            "makes the paper's image sets)"
        ) from None
    from tensorflow_datasets import decode, features

    if isinstance(dict(rows.dataset_info.features or {}).get(column), features.Image):
        return dataclasses.replace(rows, decoders={column: decode.SkipDecoding()})
    return rows


def _with_stored_images(row: Row) -> Row:
    """Returns a row whose images, stored as the hub's Parquet files do, are their bytes or paths.

    >>> _with_stored_images({"label": 1, "image": {"bytes": b"...", "path": "a.png"}})
    {'label': 1, 'image': b'...'}
    """
    stored = {
        name: value["path"] if value["bytes"] is None else value["bytes"]
        for name, value in row.items()
        if isinstance(value, dict) and value.keys() == {"bytes", "path"}
    }
    return row | stored


class _HubImages(Sequence[Row]):
    """Rows of a hub data set, read on access, with the stored bytes in the image column."""

    def __init__(self, rows: Any, column: str):
        self._rows, self._column = rows, column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = dict(self._rows[int(index)])
        image = row.get(self._column)
        return row | {self._column: image["bytes"]} if isinstance(image, dict) else row
