"""Lock of a run folder: one process at a time may write to it, any number may read it.

It is the operating system's lock on a file, so it is released when the process that holds it ends,
for whatever reason. A lock file that nobody holds a lock on means nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from goat_jax.errors import Notice, UserError

LOCK = ".lock"
UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems without locks."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of an existing folder, so that only this process writes to it.

    Where the file system has no locks, it only warns.

    Raises:
        UserError: another process holds the lock.
    """
    file = _lock(folder)
    try:
        yield
    finally:
        os.close(file)


def _lock(folder: Path) -> int:
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock_or_refuse(file, folder)
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            # The previous holder may have removed the file after it was opened here. This lock
            # would then be on an unlinked file that no other process can see, so try again.
            if _is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock_or_refuse(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 300, 0).decode("utf-8", "replace").strip()
        raise UserError(
            f"{folder} is in use by {' '.join(holder.split()) or 'another process'}: wait "
            "until that ends, or give another --out"
        ) from None
    except OSError as error:
        if error.errno not in UNKNOWN_HERE:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks: nothing prevents a second process from "
            "training there",
            Notice,
            stacklevel=4,
        )


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
