"""Reads parity bundles and refuses broken ones, naming the file and the key."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from goat_jax.errors import UserError, nearest

LAYERS, MODEL, METHODS = "layers.json", "meta.json", "methods.json"
"""The file that marks a folder as layer cases, as a model run, as cases of other methods."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A folder with one of the marker files.

    Attributes:
        folder: where it is.
        marker: `LAYERS`, `MODEL` or `METHODS`.
    """

    folder: Path
    marker: str


def find_bundles(paths: Sequence[Path | str]) -> list[Found]:
    """All bundles in these folders and below them, each once.

    Raises:
        UserError: a path that is no folder, or one that has no bundle in it.
    """
    found: dict[tuple[Path, str], Found] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            what = "a file" if path.exists() else "missing"
            raise UserError(f"{path} is {what}: give a folder with {LAYERS} or {MODEL} in it")
        here = [
            Found(Path(folder), marker)
            for folder, _, files in sorted(os.walk(path))
            for marker in (LAYERS, MODEL, METHODS)
            if marker in files
        ]
        if not here:
            raise UserError(f"{path} has no parity bundle: no {LAYERS} or {MODEL} in or below it")
        found |= {(one.folder.resolve(), one.marker): one for one in here}
    return list(found.values())


def read_object(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: write the bundle again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): write the bundle again") from None


@dataclasses.dataclass(frozen=True)
class Record:
    """The keys of one JSON object, checked as they are read.

    Attributes:
        values: the object.
        where: file, and entry in it, for messages.

    >>> Record({"rank": 16}, "layers.json").integer("rank")
    16
    """

    values: Mapping[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            kind = type(self.values).__name__
            raise UserError(f"{self.where} holds a {kind} where an object belongs")

    def get(self, key: str) -> Any:
        """A value that has to be there."""
        if key not in self.values:
            raise UserError(f"{self.where} lacks {key!r}{nearest(key, self.values)}")
        return self.values[key]

    def _refuse(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.where}: {key} is {self.values.get(key)!r}, not {wanted}")

    def text(self, key: str) -> str:
        """A string."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self._refuse(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._refuse(key, "a list of texts")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; the default, if there is one, where it is absent or null."""
        value = self.get(key) if default is None else self.values.get(key)
        value = default if value is None else value
        if value is None or not _is_number(value):
            raise self._refuse(key, "a finite number")
        return float(value)

    def integer(self, key: str, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._refuse(key, f"a whole number of at least {least}")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """That many finite numbers; one number stands for all of them."""
        value = self.get(key)
        values = value if isinstance(value, list) else [value] * length
        if len(values) != length or not all(map(_is_number, values)):
            raise self._refuse(key, f"a finite number or {length} of them")
        return tuple(map(float, values))

    def renamed(self, key: str, name: str) -> Record:
        """The same with one key, which has to be there, under another name as well."""
        return Record({**self.values, name: self.get(key)}, self.where)

    def record(self, key: str) -> Record:
        """An object inside this one."""
        return Record(self.get(key), f"{self.where}: {key}")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and bool(np.isfinite(value))


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Named arrays of one file, checked as they are read."""

    values: Mapping[str, np.ndarray]
    path: Path

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """An array of numbers that has to be there, of this shape if one is given."""
        if name not in self.values:
            raise UserError(f"{self.path} lacks the array {name!r}{nearest(name, self.values)}")
        array = self.values[name]
        if array.dtype.kind not in "fiub":
            raise UserError(f"{self.path}: {name} holds {array.dtype}, not numbers")
        if shape is not None and array.shape != shape:
            raise UserError(f"{self.path}: {name} has shape {array.shape}, not {shape}")
        return array

    def floats(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The same, in float32."""
        return self.get(name, shape).astype(np.float32)


def read_npz(path: Path) -> Arrays:
    """All arrays of an npz file; pickled ones are refused."""
    if not path.is_file():
        raise UserError(f"{path} is missing: write the bundle again")
    try:
        # From memory: np.load leaves a file that it cannot read open.
        file = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UserError(f"{path} holds a single array, not an npz of named ones")
        return Arrays({name: file[name] for name in file.files}, path)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as npz ({_line(error)}): write it again") from None


def read_safetensors(path: Path) -> Arrays:
    """All tensors of a safetensors file."""
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
