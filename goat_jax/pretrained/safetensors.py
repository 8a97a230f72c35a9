"""Hugging Face weight files: safetensors, one file or a sharded index, read tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name "bfloat16")
import numpy as np
from safetensors import SafetensorError, safe_open

from goat_jax import files
from goat_jax.errors import UserError, first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED = ("F64", "F32", "F16", "BF16")
"""Supported dtypes of stored tensors; all others are quantized or no weights."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object from a file; raises `UserError` if it is missing or broken."""
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder here: give the path of {what}")
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: give the path of {what}")
    try:
        value = files.read_json(path)
    except UserError as error:
        raise UserError(f"{error}: fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object: fetch it again")
    return value


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Header entry of a tensor in a weight file.

    Attributes:
        file: the file that holds the tensor.
        dtype: the stored dtype, by the format's names: "F32", "BF16", ...
        shape: the tensor's shape in torch.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weights(Mapping[str, np.ndarray]):
    """Tensor name -> array, read from disk at each access, so that one tensor is held at a time.

    Attributes:
        folder: the folder with the files, for messages.
        entries: tensor name -> `StoredTensor`.
        left_out: parts of the checkpoint that are not opened, such as a vision tower.
    """

    folder: Path
    entries: Mapping[str, StoredTensor]
    left_out: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def item(self, name: str, index: int) -> np.ndarray:
        """Returns one part of a tensor, by its index on the first axis."""
        return self[name][index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class WeightFiles(Weights):
    """Tensors of safetensors files."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name, lambda file: file.get_tensor(name))

    def item(self, name: str, index: int) -> np.ndarray:
        return self._read(name, lambda file: file.get_slice(name)[index])

    def _read(self, name: str, read: Callable[[Any], np.ndarray]) -> np.ndarray:
        path = self.entries[name].file
        with _open(path) as file:
            try:
                return read(file)
            except (SafetensorError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{path}: {name} cannot be read ({first_line(error)}): fetch it again"
                ) from None


def check_finite(array: np.ndarray, name: str, file: Path) -> None:
    """Raises if a tensor has values that are not finite, before anything is computed from it.

    Args:
        array: the tensor, or the part of it that is used.
        name: the tensor's name in the file.
        file: the file, for the error message.

    Raises:
        UserError: names the tensor, the file and the kind of value.

    >>> check_finite(np.array([1.0, np.nan]), "lm_head.weight", Path("model.safetensors"))
    Traceback (most recent call last):
    goat_jax.errors.UserError: model.safetensors: lm_head.weight has 1 of 2 values that are not \
finite (NaN): fetch it again, or use other weights
    """
    finite = np.isfinite(array)
    if finite.all():
        return
    count = array.size - np.count_nonzero(finite)
    kind = "NaN" if np.isnan(array).any() else "infinity"
    raise UserError(
        f"{file}: {name} has {count:,} of {array.size:,} values that are not finite ({kind}): "
        "fetch it again, or use other weights"
    )


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is missing, but the index names it: fetch the complete checkpoint")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} is damaged or truncated at {size} bytes ({error}): fetch it again"
        ) from None


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Reads the header of a safetensors file: tensor name -> `StoredTensor`."""
    with _open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return {
            name: StoredTensor(path, view.get_dtype(), tuple(view.get_shape()))
            for name, view in slices.items()
        }


def open_weights(folder: Path) -> WeightFiles:
    """Opens a checkpoint folder's weights; a single file goes before an index, as in transformers.

    Raises:
        UserError: no safetensors there, a missing shard, a damaged file.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return WeightFiles(folder, read_header(folder / SINGLE))
    if (folder / INDEX).is_file():
        return WeightFiles(folder, _read_index(folder / INDEX))
    pickled = sorted(path.name for kind in PICKLED for path in folder.glob(kind))
    if pickled:
        raise UserError(
            f"{folder} has only pickled weights ({pickled[0]}), which are never opened: "
            "save the model with safetensors"
        )
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}: fetch the complete checkpoint")


def _read_index(path: Path) -> dict[str, StoredTensor]:
    """Reads the entries of all shards; an index must not point outside its folder."""
    places = read_json(path, "an index of weights").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map: fetch it again")
    entries: dict[str, StoredTensor] = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard:
            raise UserError(
                f"{path} names {shard!r}, which is not a file beside it: fetch it again"
            )
        header = read_header(path.parent / shard)
        promised = [name for name, file in places.items() if file == shard]
        absent = [name for name in promised if name not in header]
        if absent:
            raise UserError(
                f"{path.parent / shard} lacks {absent[0]}, which the index promises: fetch it again"
            )
        entries |= {name: header[name] for name in promised}
    return entries
