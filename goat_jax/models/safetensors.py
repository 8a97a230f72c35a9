"""Hugging Face weight files: safetensors, one file or a sharded index, read tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from goat_jax.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file; one clear line if it is missing or broken."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: it is not {what}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object: fetch it again")
    return value


@dataclasses.dataclass(frozen=True)
class WeightFiles(Mapping[str, np.ndarray]):
    """Tensor name -> array, read from disk at each access, so that one tensor is held at a time.

    Attributes:
        files: tensor name -> the file it is in.
    """

    files: Mapping[str, Path]

    def __getitem__(self, name: str) -> np.ndarray:
        with _open(self.files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        with _open(self.files[name]) as file:
            return tuple(file.get_slice(name).get_shape())


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is missing, the index names it: fetch the whole checkpoint")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} is damaged or cut short at {size} bytes ({error}): fetch it again"
        ) from None


def _names(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def open_weights(folder: Path) -> WeightFiles:
    """The weights of a checkpoint folder.

    Raises:
        UserError: no safetensors there, a missing shard, a damaged file.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, "an index of weights")
        files = {name: folder / file for name, file in index.get("weight_map", {}).items()}
        for path in sorted(set(files.values())):
            absent = sorted({name for name in files if files[name] == path} - set(_names(path)))
            if absent:
                raise UserError(
                    f"{path} lacks {absent[0]}, which the index promises: fetch it again"
                )
        return WeightFiles(files)
    if (folder / SINGLE).is_file():
        return WeightFiles({name: folder / SINGLE for name in _names(folder / SINGLE)})
    if list(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has only pickled weights (*.bin), which are never opened: "
            "save the model with safetensors"
        )
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}")
