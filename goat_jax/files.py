"""File care: whole writes, checked JSON, checksums, and the one rule for cache folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from goat_jax.errors import UserError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that it holds either its old content or all of the new one.

    The new content goes to a temporary file in the same folder, whose name no other process uses,
    and takes the place of the old one when it is on the disk.

    Raises:
        OSError: it cannot be written; the old file is untouched and nothing is left behind.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "a.txt", "one")
    >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
    ('one', 1)
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    aside = path.parent / f".{path.name[:64]}.{secrets.token_hex(8)}.part"
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: in one line: there is no such file, it cannot be read, is not UTF-8, is not JSON,
            is nested too deep, or holds a number that is not finite.

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
    """The value of a JSON text.

    Args:
        where: the text's origin, for the error.

    Raises:
        UserError: as for `read_json`.

    >>> parse_json('{"alpha": NaN}', "adapter_config.json")
    Traceback (most recent call last):
    goat_jax.errors.UserError: adapter_config.json holds the number NaN: give a finite one
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
    raise UserError(f"{where} holds the number {number}: give a finite one")


def _finite(where: str) -> Any:
    def parse(text: str) -> float:
        value = float(text)  # "1e999" is infinity
        return value if math.isfinite(value) else _refuse(text, where)

    return parse


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits.

    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "empty", b"")
    >>> sha256_of(folder / "empty")[:8]
    'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(name: str = "") -> Path:
    """The folder for what can be made again: ``$XDG_CACHE_HOME/goat_jax/name``, or in ``~/.cache``.

    It is not created here. Nothing may depend on it: a run with a cache that is full, read-only,
    damaged or shared gives the same numbers as one without.

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
