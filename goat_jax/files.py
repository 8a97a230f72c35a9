"""File helpers: atomic writes, checked JSON, checksums, and the location of cache folders."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from goat_jax.errors import Notice, UserError

_reported: set[str] = set()
"""Cache folders about which a warning was already given."""


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a file atomically: it holds either its old content or all of the new content.

    The new content goes to a temporary file in the same folder, whose name no other process uses.
    Once its content is on the disk, the temporary file replaces the old one.

    Args:
        path: the file.
        content: the new content; text is encoded as UTF-8.

    Raises:
        OSError: the file cannot be written; the old file is unchanged, no temporary file is left.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "a.txt", "one")
    >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
    ('one', 1)
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with whole_file(path) as aside:
        aside.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file to write to, which replaces `path` if the block raises nothing.

    It is for writers that take a file name; `write_whole` is for content in memory.

    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with whole_file(path) as aside:
    ...     _ = aside.write_text("one")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('one', 1)
    """
    path = Path(path)
    aside = path.parent / f".{path.name[:64]}.{secrets.token_hex(8)}.part"
    try:
        yield aside
        put_in_place(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # report the first error, not this one
            aside.unlink(missing_ok=True)
        raise


def put_in_place(aside: Path, path: Path) -> None:
    """Renames a temporary file to its final name, once its content is on the disk."""
    with open(aside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_json(path: str | Path) -> Any:
    """Reads the value of a JSON file.

    Raises:
        UserError: the file does not exist, cannot be read, is not UTF-8, is not JSON, is nested too
            deep, or holds a number that is not finite.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "a.json", '{"rank": 8}')
    >>> read_json(folder / "a.json")
    {'rank': 8}
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return parse_json(data, str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """Parses a JSON text.

    Args:
        text: the text, or its bytes in UTF-8.
        where: the origin of the text, for errors.

    Raises:
        UserError: the text is not UTF-8, is not JSON, is nested too deep, or holds a number that is
            not finite.

    >>> parse_json('{"alpha": NaN}', "adapter_config.json")
    Traceback (most recent call last):
    goat_jax.errors.UserError: adapter_config.json holds the number NaN: give a finite number
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(
            text, parse_constant=lambda name: _refuse(name, where), parse_float=_finite(where)
        )
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deep to be read") from None
    except ValueError as error:  # JSONDecodeError, or an integer of too many digits
        raise UserError(f"{where} is not valid JSON ({error})") from None


def _refuse(number: str, where: str) -> NoReturn:
    raise UserError(f"{where} holds the number {number}: give a finite number")


def _finite(where: str) -> Any:
    def parse(text: str) -> float:
        value = float(text)  # "1e999" is infinity
        return value if math.isfinite(value) else _refuse(text, where)

    return parse


def user_path(path: str | Path) -> Path:
    """Returns a path given by the user, with a leading ``~`` or ``~name`` as the home folder.

    Raises:
        UserError: there is no user of this name, or the user has no home folder.

    >>> user_path("runs/demo").as_posix()
    'runs/demo'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such user: give the full path") from None


def sha256_of(path: str | Path) -> str:
    """Computes the SHA-256 of a file's bytes, in hexadecimal digits.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "empty", b"")
    >>> sha256_of(folder / "empty")[:8]
    'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(name: str = "") -> Path:
    """Returns a cache folder: ``$XDG_CACHE_HOME/goat_jax/name``, or ``~/.cache/goat_jax/name``.

    It is not created here, and holds only what can be computed again. No result may depend on it: a
    run with a cache that is full, read-only, damaged or shared gives the same numbers as one
    without.

    Args:
        name: the subfolder; empty for the root of all of them.

    >>> cache_folder("svd").parts[-2:]
    ('goat_jax', 'svd')
    """
    # The XDG specification: a relative path is invalid and counts as unset.
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home folder
        base = Path(tempfile.gettempdir())
    return base / "goat_jax" / name


def report_unusable_cache(folder: str | Path, error: BaseException) -> None:
    """Warns, once per folder and process, that a cache cannot be used and is skipped.

    Args:
        folder: the cache folder.
        error: the reason.
    """
    if (folder := str(folder)) in _reported:
        return
    _reported.add(folder)
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()
    message = f"cannot use the cache {folder} ({reason[0]}): continuing without it"
    warnings.warn(message, Notice, stacklevel=3)


@functools.cache
def temporary_folder() -> Path:
    """Returns a folder for files that no cache could hold; it is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="goat-jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
