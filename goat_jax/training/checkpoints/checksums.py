"""Checksums of a checkpoint: the SHA-256 of its every file, in `checksums.json` beside them.

Orbax writes a checkpoint under another name and renames it when it is complete. The checksums are
written just before that, so a checkpoint has all of them or does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goat_jax.errors import UserError
from goat_jax.files import read_json, sha256_of, write_whole

NAME = "checksums.json"
MARK = {"checksums": NAME}
"""Custom metadata of a checkpoint that has checksums; those of older versions have none."""
METADATA = "_CHECKPOINT_METADATA"
SMALL = 1 << 20
"""Files of more bytes than this are only hashed by a thorough check."""


def write_checksums(folder: Path, step: int) -> None:
    """Writes the checksums of all files in a checkpoint's folder, and the step it is of."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in _files(folder)
    }
    write_whole(folder / NAME, _render(step, files))


def damage_of(folder: Path, step: int, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a few words that name the file; None if it is intact.

    A checkpoint that was written without checksums counts as intact.

    Args:
        step: the step that its name says.
        thorough: whether large files are read, too; without it only their sizes are compared.
    """
    try:
        return _damage_of(folder, step, thorough)
    except UserError as error:
        return str(error).removeprefix(f"{folder}/")
    except OSError as error:
        return f"{error.filename or folder.name} cannot be read: {error.strerror or error}"


def _damage_of(folder: Path, step: int, thorough: bool) -> str | None:
    if not (folder / METADATA).is_file():
        return f"{METADATA} is missing"
    if not (folder / NAME).is_file():
        return f"{NAME} is missing" if has_checksums(folder) else None
    saved = _read(folder / NAME)
    if saved is None:
        return f"{NAME} has changed since it was written"
    if saved["step"] != step:
        return f"it is the checkpoint of step {saved['step']}"
    expected, found = saved["files"], dict(_files(folder))
    if missing := sorted(expected.keys() - found.keys()):
        return f"{missing[0]} is missing"
    if more := sorted(found.keys() - expected.keys()):
        return f"{more[0]} was not written with it"
    for name, path in found.items():
        size = path.stat().st_size
        if size != expected[name]["bytes"]:
            return f"{name} has {size:,} bytes instead of {expected[name]['bytes']:,}"
        if (thorough or size <= SMALL) and sha256_of(path) != expected[name]["sha256"]:
            return f"{name} has changed since it was written"
    return None


def has_checksums(folder: Path) -> bool:
    """Whether a checkpoint was written with checksums, by what Orbax's metadata say of it.

    Raises:
        UserError: the metadata cannot be read.
    """
    metadata = read_json(folder / METADATA)
    custom = metadata.get("custom_metadata") if isinstance(metadata, dict) else None
    return isinstance(custom, dict) and custom.items() >= MARK.items()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file but the checksums: its name from the folder, and its path."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != NAME and not path.is_dir():
            yield name, path


def _render(step: int, files: dict[str, Any]) -> str:
    text = json.dumps({"step": step, "files": files}, indent=1, sort_keys=True)
    return json.dumps(
        {"step": step, "files": files, "sha256": hashlib.sha256(text.encode()).hexdigest()},
        indent=1,
        sort_keys=True,
    )


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a file of checksums; None unless it is byte for byte as it was written."""
    try:
        saved = read_json(path)
        unchanged = _render(saved["step"], saved["files"]).encode() == path.read_bytes()
    except (UserError, TypeError, KeyError):
        return None
    return saved if unchanged else None
