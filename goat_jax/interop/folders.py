"""Writes folders atomically, and writes and reads the safetensors files in them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.pretrained.safetensors import (
    PICKLED,
    STORED,
    WeightFiles,
    check_finite,
    read_header,
    read_json,
)

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ABOUT = "goat_jax.json"
"""Name of the file with our facts about an exported adapter that its format has no field for."""
SHARD_BYTES = 5 * 10**9
"""Default size limit of a checkpoint's files, in bytes."""


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a folder to write to, which is renamed to `out` on success and removed on failure.

    Args:
        out: the folder to create; an empty one may exist.

    Raises:
        UserError: `out` exists and is not an empty folder, or it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     with whole_folder(Path(root) / "made") as folder:
    ...         _ = (folder / "a.txt").write_text("whole")
    ...     sorted(path.name for path in Path(root).iterdir())
    ['made']
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another folder, or remove it first")
    aside = out.absolute().parent / f".{out.name}.writing-{os.getpid()}"
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): choose another folder"
        ) from None
    try:
        yield aside
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with indentation and sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """Reads a folder's `ABOUT` file; empty for an adapter that goat_jax did not export."""
    about = folder / ABOUT
    return read_json(about, "an adapter") if about.is_file() else {}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file in the form that PyTorch's readers expect."""
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})


def write_shards(
    folder: Path, tensors: Iterator[tuple[str, np.ndarray]], most: int = SHARD_BYTES
) -> None:
    """Writes a checkpoint's tensors to one file, or to shards with an index.

    Only one shard is in memory at a time.

    Args:
        folder: the folder to write to.
        tensors: the (name, tensor) pairs.
        most: the largest size of a file in bytes, unless a single tensor is larger.
    """
    files: list[Path] = []
    places: dict[str, int] = {}
    total, held, size = 0, {}, 0

    def flush() -> None:
        files.append(folder / f"shard-{len(files)}")
        write_tensors(files[-1], held)
        places.update(dict.fromkeys(held, len(files)))

    for name, tensor in tensors:
        if held and size + tensor.nbytes > most:
            flush()
            held, size = {}, 0
        held[name], size, total = tensor, size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")
        return
    named = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file, name in zip(files, named, strict=True):
        file.rename(folder / name)
    write_json(
        folder / "model.safetensors.index.json",
        {
            "metadata": {"total_size": total},
            "weight_map": {name: named[number - 1] for name, number in places.items()},
        },
    )


def read_tensors(source: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of an adapter, which must be finite floats.

    Raises:
        UserError: as for `open_adapter`, or a tensor is not stored as floats or is not finite.
    """
    opened = open_adapter(source)
    tensors = {}
    for name, entry in opened.entries.items():
        if entry.dtype not in STORED:
            raise UserError(
                f"{entry.file}: {name} is stored as {entry.dtype}: save the adapter as one of "
                f"{', '.join(STORED)}"
            )
        tensors[name] = opened[name]
        check_finite(tensors[name], name, entry.file)
    return tensors


def open_adapter(source: Path) -> WeightFiles:
    """Opens the tensors of an adapter, from a folder with `ADAPTER` or from a safetensors file.

    Raises:
        UserError: there is no such file, the weights are pickled, or the file is damaged.
    """
    source = user_path(source)
    file = source / ADAPTER if source.is_dir() else source
    if file.is_file() and file.suffix == ".safetensors":
        return WeightFiles(source, read_header(file))
    place = source if source.is_dir() else source.parent
    pickled = sorted(path.name for kind in PICKLED for path in place.glob(kind))
    if pickled or any(source.match(kind) for kind in PICKLED):
        raise UserError(
            f"{source} has only pickled weights ({(pickled or [source.name])[0]}), which are "
            "never opened: save the adapter with safetensors"
        )
    raise UserError(f"{source} has no {ADAPTER}: give the folder of an adapter")
