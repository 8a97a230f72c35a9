"""Downloads files over HTTP: resumable, verified by checksum, and complete before they appear."""

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
"""Disk errors, which a second attempt cannot fix, unlike connection errors."""

Progress = Callable[[str, int, int | None], None]
"""Progress callback: (file name, bytes received so far, total bytes or None)."""


@dataclass(frozen=True)
class RemoteFile:
    """One of the files that a data set is built from.

    Attributes:
      filename: the file's local name.
      url: the file's address; empty if it must be downloaded by hand.
      checksum: the checksum as ``sha256:HEX`` or ``md5:HEX`` (if the host publishes no other);
        None: not known.
      size: the size in bytes, 0 if not known.

    >>> RemoteFile("a.zip", "https://example.org/a.zip").checksum is None
    True
    """

    filename: str
    url: str = ""
    checksum: str | None = None
    size: int = 0


def nothing(name: str, done: int, total: int | None) -> None:
    """Reports no progress: the default `Progress`."""


def fetch(
    remote: RemoteFile, folder: Path, report: Progress = nothing, *, wait: float = 1.0
) -> Path:
    """Returns the path of a file in a folder, after fetching it if it is missing.

    An unfinished download is kept as ``.NAME.part``: after a broken connection, a kill or a reboot
    the same call resumes it if the server can, and restarts it if not. The file gets its final name
    once it is complete and its checksum is correct.

    Args:
      remote: the file to fetch.
      folder: the folder for the file.
      report: the callback, called after every chunk.
      wait: the seconds before the second attempt; doubled for each further one.

    Raises:
      UserError: the connection broke too often (the received part is kept), the server has no such
        file, the disk cannot take it, or the size or checksum is wrong (a download is deleted).
    """
    target, part = folder / remote.filename, folder / f".{remote.filename}.part"
    if target.is_file():
        check(target, remote)
        return target
    if not remote.url.startswith(("http://", "https://")):
        raise UserError(f"{remote.filename} cannot be downloaded: put it into {folder}")
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
                    "room and start the same command again, which continues the download"
                ) from None
            problem = str(error) or type(error).__name__
        if attempt + 1 == ATTEMPTS:
            kept = part.stat().st_size if part.is_file() else 0
            raise UserError(
                f"{remote.url}: the download broke off {ATTEMPTS} times ({problem}); {kept:,} "
                "bytes are kept: "
                f"start the same command again, or put {remote.filename} into {folder}"
            ) from None
        time.sleep(wait * 2**attempt)
    try:
        check(part, remote)
    except UserError:
        part.unlink()
        raise
    put_in_place(part, target)
    return target


def _receive(remote: RemoteFile, part: Path, report: Progress) -> None:
    """Appends the missing bytes to the partial file.

    Raises EOFError if the connection ends too early.
    """
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
        if error.code == 416 and have:  # the partial file is as long as the file, or longer
            total = _total(error.headers.get("Content-Range"))
            if total == have:
                return
            part.unlink()
            raise EOFError("the server's file has changed") from None
        raise
    with answer:
        resumes = answer.status == 206
        length = answer.headers.get("Content-Length")
        done = have if resumes else 0
        total = done + int(length) if length is not None else remote.size or None
        with part.open("ab" if resumes else "wb") as file:
            while piece := answer.read(CHUNK):
                file.write(piece)
                done += len(piece)
                report(remote.filename, done, total)
    if total is not None and done < total:
        raise EOFError(f"{done:,} of {total:,} bytes arrived")


def _total(content_range: str | None) -> int | None:
    """Parses the total size in a Content-Range header such as ``bytes */123``."""
    last = (content_range or "").rpartition("/")[2]
    return int(last) if last.isdigit() else None


def check(path: Path, remote: RemoteFile) -> None:
    """Raises `UserError` if a file's size or checksum, where known, is not the expected one.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.zip"
    >>> _ = path.write_bytes(b"other")
    >>> check(path, RemoteFile("a.zip", size=3))
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
        checksum = hashlib.file_digest(file, kind).hexdigest()
    if checksum != expected:
        raise UserError(
            f"{remote.filename} has {kind} {checksum[:16]}..., not {expected[:16]}...: "
            "remove it, or give the right file"
        )
