"""Reads parity bundles and rejects broken ones with the name of the file and the key."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from goat_jax.errors import UserError, nearest

LAYERS, MODEL, METHODS = "layers.json", "meta.json", "methods.json"
"""Marker files of folders with layer cases, with a model run, and with cases of other methods."""
MARKERS = f"{LAYERS}, {MODEL} or {METHODS}"
"""The marker files, for messages."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A parity bundle: a folder with one of the marker files.

    Attributes:
        folder: the path of the folder.
        marker: its marker file: `LAYERS`, `MODEL` or `METHODS`.
    """

    folder: Path
    marker: str


def find_bundles(paths: Sequence[Path | str]) -> list[Found]:
    """Finds all bundles in these folders and their subfolders, each once.

    Raises:
        UserError: a path is not a folder, or has no bundle in it.
    """
    bundles: dict[tuple[Path, str], Found] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            what = "a file" if path.exists() else "missing"
            raise UserError(f"{path} is {what}: give a folder with {MARKERS} in it")
        here = [
            Found(Path(folder), marker)
            for folder, _, files in sorted(os.walk(path))
            for marker in (LAYERS, MODEL, METHODS)
            if marker in files
        ]
        if not here:
            raise UserError(f"{path} has no parity bundle: no {MARKERS} in or below it")
        bundles |= {(one.folder.resolve(), one.marker): one for one in here}
    return list(bundles.values())


def read_object(path: Path) -> Any:
    """Reads the value in a JSON file.

    Raises:
        UserError: the file is missing or is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: write the bundle again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): write the bundle again") from None


@dataclasses.dataclass(frozen=True)
class Record:
    """A JSON object whose values are checked when they are read.

    The methods raise `UserError` for a missing required key and for a value of another type.

    Attributes:
        values: the JSON object.
        where: the file and the entry in it, for messages.

    Raises:
        UserError: the JSON value is not an object.

    >>> Record({"rank": 16}, "layers.json").integer("rank")
    16
    """

    values: Mapping[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            kind = type(self.values).__name__
            raise UserError(f"{self.where} holds a {kind}, not an object")

    def require(self, *keys: str) -> None:
        """Raises one error that names every key that is missing."""
        if missing := [key for key in keys if key not in self.values]:
            raise UserError(f"{self.where} lacks {_names(missing, self.values)}")

    def get(self, key: str) -> Any:
        """Returns the value of a required key."""
        self.require(key)
        return self.values[key]

    def _refuse(self, key: str, expected: str) -> UserError:
        return UserError(f"{self.where}: {key} is {self.values.get(key)!r}, not {expected}")

    def text(self, key: str) -> str:
        """Returns a non-empty string."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self._refuse(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """Returns a list of strings."""
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._refuse(key, "a list of texts")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a finite number; the default, if one is given, for an absent or null value."""
        value = self.get(key) if default is None else self.values.get(key)
        value = default if value is None else value
        if value is None or not _is_number(value):
            raise self._refuse(key, "a finite number")
        return float(value)

    def integer(self, key: str, least: int = 1) -> int:
        """Returns an integer of at least `least`."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._refuse(key, f"a whole number of at least {least}")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """Returns `length` finite numbers; a single number is repeated."""
        value = self.get(key)
        values = value if isinstance(value, list) else [value] * length
        if len(values) != length or not all(map(_is_number, values)):
            raise self._refuse(key, f"a finite number or {length} of them")
        return tuple(map(float, values))

    def renamed(self, key: str, name: str) -> Record:
        """Returns the record with the value of a required key also stored under another name."""
        return Record({**self.values, name: self.get(key)}, self.where)

    def record(self, key: str) -> Record:
        """Returns a nested object."""
        return Record(self.get(key), f"{self.where}: {key}")


def _names(missing: Sequence[str], present: Iterable[str]) -> str:
    """Lists missing names; of a single one, also a present name that it may be a misspelling of."""
    near = nearest(missing[0], present) if len(missing) == 1 else ""
    return ", ".join(map(repr, missing)) + near


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return bool(np.isfinite(value))


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Named arrays of one file, checked when they are read.

    Attributes:
        values: the arrays by name.
        path: the file, for messages.
    """

    values: Mapping[str, np.ndarray]
    path: Path

    def require(self, *names: str) -> None:
        """Raises one error that names every array that is missing."""
        if missing := [name for name in names if name not in self.values]:
            word = "array" if len(missing) == 1 else "arrays"
            raise UserError(f"{self.path} lacks the {word} {_names(missing, self.values)}")

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Returns a required numeric array.

        Args:
            name: the array's name.
            shape: the shape that it must have; None allows any.

        Raises:
            UserError: the array is missing, is not numeric or has another shape.
        """
        self.require(name)
        array = self.values[name]
        if array.dtype.kind not in "fiub":
            raise UserError(f"{self.path}: {name} holds {array.dtype}, not numbers")
        if shape is not None and array.shape != shape:
            raise UserError(f"{self.path}: {name} has shape {array.shape}, not {shape}")
        return array

    def floats(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Returns a required numeric array in float32; arguments and errors as for `get`."""
        return self.get(name, shape).astype(np.float32)


def read_npz(path: Path) -> Arrays:
    """Reads all arrays of an npz file; pickled arrays are rejected.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: write the bundle again")
    try:
        # Read from memory, because np.load does not close a file that it fails to read.
        file = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UserError(f"{path} holds a single array, not an npz of named ones")
        return Arrays({name: file[name] for name in file.files}, path)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as npz ({_line(error)}): write it again") from None


def read_safetensors(path: Path) -> Arrays:
    """Reads all tensors of a safetensors file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: write the bundle again")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return Arrays({name: file.get_tensor(name) for name in names}, path)
    except (SafetensorError, TypeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({_line(error)}): write it again"
        ) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
