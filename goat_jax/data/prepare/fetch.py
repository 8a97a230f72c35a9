"""Files over HTTP: resumed where they broke off, checked, and never half there."""

from __future__ import annotations

import errno
import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from goat_jax.errors import UserError
from goat_jax.files import put_in_place

CHUNK = 1 << 18
TIMEOUT = 60.0
ATTEMPTS = 5

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that no second attempt mends, unlike those of a connection."""

Report = Callable[[str, int, int | None], None]
"""(file name, bytes that are here, bytes of the whole file or None)."""


@dataclass(frozen=True)
class Remote:
    """A file that a set is made of.

    Attributes:
      filename: what it is called here.
      url: where it can be had; empty if only a person can get it.
      checksum: ``sha256:HEX`` or ``md5:HEX`` (of hosts that publish no other); None: not known.
      size: bytes, 0 if not known.

    >>> Remote("a.zip", "https://example.org/a.zip").checksum is None
    True
    """

    filename: str
    url: str = ""
    checksum: str | None = None
    size: int = 0


def nothing(name: str, done: int, total: int | None) -> None:
    """A `Report` that shows nothing."""


def fetch(remote: Remote, folder: Path, report: Report = nothing, *, wait: float = 1.0) -> Path:
    """The file in a folder, fetched unless it is there and right.

    What has come so far lies beside it as ``.NAME.part``: the same call goes on from there after a
    broken connection, a kill or a reboot, if the server can (it starts again if not). The file
    gets its name when it is whole and its checksum is right.

    Args:
      report: called after every piece.
      wait: seconds before the second attempt; doubled for each further one.

    Raises:
      UserError: the connection broke too often (what came is kept), the server has no such file,
        or the checksum is wrong (nothing is kept).
    """
    target, part = folder / remote.filename, folder / f".{remote.filename}.part"
    if target.is_file():
        check(target, remote)
        return target
    if not remote.url.startswith(("http://", "https://")):
        raise UserError(f"{remote.filename} cannot be fetched: put it into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        try:
            _receive(remote, part, report)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(
                    f"{remote.url}: the server answers {error.code} {error.reason}: "
                    f"get {remote.filename} elsewhere and put it into {folder}"
                ) from None
            problem = f"{error.code} {error.reason}"
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise UserError(
                    f"{remote.filename} cannot be written to {folder} ({error.strerror}): make "
                    "room; the same command goes on with what came"
                ) from None
            problem = str(error) or type(error).__name__
        if attempt + 1 == ATTEMPTS:
            kept = part.stat().st_size if part.is_file() else 0
            raise UserError(
                f"{remote.url}: broke off {ATTEMPTS} times ({problem}); {kept:,} bytes are kept: "
                f"the same command goes on, or put {remote.filename} into {folder}"
            ) from None
        time.sleep(wait * 2**attempt)
    try:
        check(part, remote)
    except UserError:
        part.unlink()
        raise
    put_in_place(part, target)
    return target


def _receive(remote: Remote, part: Path, report: Report) -> None:
    """Appends what is missing to the part; EOFError if the connection ends too early."""
    have = part.stat().st_size if part.is_file() else 0
    if remote.size and have >= remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"User-Agent": "goat-jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the part is as long as the file, or longer
            total = _total(error.headers.get("Content-Range"))
            if total == have:
                return
            part.unlink()
            raise EOFError("the server's file is another one now") from None
        raise
    with answer:
        goes_on = answer.status == 206
        length = answer.headers.get("Content-Length")
        done = have if goes_on else 0
        total = done + int(length) if length is not None else remote.size or None
        with part.open("ab" if goes_on else "wb") as file:
            while piece := answer.read(CHUNK):
                file.write(piece)
                done += len(piece)
                report(remote.filename, done, total)
    if total is not None and done < total:
        raise EOFError(f"{done:,} of {total:,} bytes came")


def _total(content_range: str | None) -> int | None:
    """The last number of ``bytes */123``."""
    last = (content_range or "").rpartition("/")[2]
    return int(last) if last.isdigit() else None


def check(path: Path, remote: Remote) -> None:
    """Raises `UserError` if a file is not the one that is meant; without a checksum by its size.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.zip"
    >>> _ = path.write_bytes(b"other")
    >>> check(path, Remote("a.zip", size=3))
    Traceback (most recent call last):
    goat_jax.errors.UserError: a.zip has 5 bytes, not 3: remove it, or give the right file
    """
    size = path.stat().st_size
    if remote.size and size != remote.size:
        raise UserError(
            f"{remote.filename} has {size:,} bytes, not {remote.size:,}: "
            "remove it, or give the right file"
        )
    if remote.checksum is None:
        return
    kind, _, expected = remote.checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise UserError(
            f"{remote.filename} has {kind} {found[:16]}..., not {expected[:16]}...: "
            "remove it, or give the right file"
        )
