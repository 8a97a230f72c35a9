"""Checksums of a checkpoint: the SHA-256 of each of its files, in `checksums.json` beside them.

Orbax writes a checkpoint under a temporary name and renames it when it is complete. The checksums
are written just before the renaming, so a checkpoint either has all of them or does not exist.
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
"""Custom metadata of a checkpoint with checksums; checkpoints of older versions lack it."""
METADATA = "_CHECKPOINT_METADATA"
SMALL = 1 << 20
"""Size in bytes above which a file is hashed only by a thorough check."""


def write_checksums(folder: Path, step: int) -> None:
    """Writes the checksums of all files in a checkpoint's folder, and the checkpoint's step."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in _files(folder)
    }
    write_whole(folder / NAME, _render(step, files))


def damage_of(folder: Path, step: int, thorough: bool = True) -> str | None:
    """Returns a short description of a checkpoint's damage; None if it is intact.

    The description names the damaged file. A checkpoint that was written without checksums counts
    as intact.

    Args:
        folder: the checkpoint's folder.
        step: the step in the checkpoint's name.
        thorough: whether large files are hashed too; otherwise only their sizes are compared.
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
    expected, present = saved["files"], dict(_files(folder))
    if missing := sorted(expected.keys() - present.keys()):
        return f"{missing[0]} is missing"
    if more := sorted(present.keys() - expected.keys()):
        return f"{more[0]} was not written with it"
    for name, path in present.items():
        size = path.stat().st_size
        if size != expected[name]["bytes"]:
            return f"{name} has {size:,} bytes instead of {expected[name]['bytes']:,}"
        if (thorough or size <= SMALL) and sha256_of(path) != expected[name]["sha256"]:
            return f"{name} has changed since it was written"
    return None


def has_checksums(folder: Path) -> bool:
    """True if a checkpoint was written with checksums, according to its Orbax metadata.

    Raises:
        UserError: the metadata cannot be read.
    """
    metadata = read_json(folder / METADATA)
    custom = metadata.get("custom_metadata") if isinstance(metadata, dict) else None
    return isinstance(custom, dict) and custom.items() >= MARK.items()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the name relative to the folder and the path of every file but the checksums."""
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
    """Reads a file of checksums; None unless it is byte for byte as it was written."""
    try:
        saved = read_json(path)
        unchanged = _render(saved["step"], saved["files"]).encode() == path.read_bytes()
    except (UserError, TypeError, KeyError):
        return None
    return saved if unchanged else None
