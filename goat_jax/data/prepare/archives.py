"""Reads members of zip and tar archives, and files of folders, without unpacking them to disk.

Archives come from other parties, so nothing in them is trusted. Links and devices are skipped.
Names outside the target folder, encrypted or duplicate members, and members that unpack to more
than an archive of that size plausibly holds raise a one-line UserError.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from goat_jax.errors import UserError

MEMBER_BYTES = 2 * 2**30
"""Bytes of the largest member that is read, since members are read into memory."""

TOTAL_BYTES, RATIO = 2**28, 200
"""Limits on the unpacked total: this many bytes, or this multiple of the archive's size, whichever
is larger. Text and images compress to a tenth at best, a zip bomb of zeros to a thousandth."""

DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    struct.error,
    RuntimeError,  # for example a compression method that zipfile does not support
)


def read_members(path: Path, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of every wanted file, in the archive's order.

    Links, devices and the files macOS adds to archives (``._NAME``, ``__MACOSX``) are skipped.

    Args:
      path: a zip or tar file, compressed or not, with any suffix, or a folder.
      keep: the filter: a name inside the archive, with forward slashes -> whether to read it.

    Raises UserError if the archive is damaged, encrypted or of another kind, has a member twice,
    or unpacks to implausibly many bytes.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_bytes(b"one")
    >>> list(read_members(folder, lambda name: name.endswith(".txt")))
    [('a.txt', b'one')]
    """
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if keep(name) and not _added_by_macos(name):
                yield name, file.read_bytes()
        return
    seen: set[str] = set()
    try:
        for stored, read in _zip(path) if zipfile.is_zipfile(path) else _tar(path):
            name = str(PurePosixPath(stored))
            if not keep(name) or _added_by_macos(name):
                continue
            if name in seen:
                raise UserError(f"{path} contains {name!r} twice: download it again")
            seen.add(name)
            yield name, read()
    except UserError:
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:  # an error of the disk, not of the file's content
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable archive ({error}): download it again")


def _added_by_macos(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith("._") for part in parts)


def _zip(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    size = _Size(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            size.add(member.filename, member.file_size)
            if member.flag_bits & 1:
                raise UserError(f"{path}: {member.filename!r} is encrypted: unpack it first")
            yield member.filename, partial(archive.read, member)


def _tar(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    size = _Size(path)
    # Read as a stream: a seek in a compressed tar would decompress it from the start each time.
    with _unzipped(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            size.add(member.name, member.size)
            if member.isfile():
                yield member.name, partial(_content, archive, member)
        while piece := file.read(2**20):  # read to the end, where gzip checks its checksum
            size.add("the rest", len(piece))


def _unzipped(path: Path) -> gzip.GzipFile | BinaryIO:
    """Opens the file, decompressing gzip here because tarfile does not check gzip's checksum."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file always has one
    return file.read()


class _Size:
    """Sums the unpacked sizes of an archive's members; raises UserError above the limits."""

    def __init__(self, path: Path):
        self._path, self._total = path, 0
        self._most = max(TOTAL_BYTES, RATIO * path.stat().st_size)

    def add(self, name: str, size: int) -> None:
        self._total += size
        if size > MEMBER_BYTES or self._total > self._most:
            raise UserError(
                f"{self._path}: {name!r} unpacks to {size:,} bytes, and with the files before it "
                f"to {self._total:,}: more than is plausible, not unpacked"
            )


def read_member(path: Path, name: str) -> bytes:
    """Reads one file of an archive; raises UserError if it is missing.

    >>> read_member(Path(__file__).parent, "nowhere.txt")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    goat_jax.errors.UserError: ... has no 'nowhere.txt': download it again
    """
    for _, data in read_members(path, name.__eq__):
        return data
    raise UserError(f"{path} has no {name!r}: download it again")


def unpack(path: Path, out: Path) -> Path:
    """Unpacks all files of an archive into a folder and returns the folder.

    Raises UserError for a name outside the folder, or one that is both a file and a folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with zipfile.ZipFile(folder / "a.zip", "w") as archive:
    ...     archive.writestr("in/a.txt", "one")
    >>> (unpack(folder / "a.zip", folder / "out") / "in" / "a.txt").read_text()
    'one'
    """
    for name, data in read_members(path, lambda name: True):
        target = (out / name).resolve()
        if not target.is_relative_to(out.resolve()):
            raise UserError(
                f"{path}: the name {name!r} leads out of the target folder: not unpacked"
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise UserError(f"{path}: {name!r} is both a file and a folder: not unpacked") from None
    return out
