"""Members of zip and tar archives, and files of folders, read without unpacking them.

An archive comes from elsewhere, so nothing in it is trusted: names that lead out of it, links,
devices, encrypted or doubled members and members that unpack to more than an archive of its size
can hold are left alone or refused in one line.
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
"""The largest member that is read: they are read into memory."""

TOTAL_BYTES, RATIO = 2**28, 200
"""All members together may have so many bytes, or so many times those of the archive. Texts and
images pack to a tenth at best; a bomb of nothing but zeros packs to a thousandth."""

DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    struct.error,
    RuntimeError,  # among them a compression that zipfile does not know
)


def read_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every wanted file, in the archive's order.

    Links and devices are no files, and what macOS adds to archives (``._NAME``, ``__MACOSX``) is
    left out.

    Args:
      path: a zip or tar file, compressed or not, whatever its ending, or a folder.
      wanted: name inside -> whether it is read; names have forward slashes.

    Raises UserError if the archive is damaged, encrypted or of another kind, has a member twice,
    or unpacks to too much.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_bytes(b"one")
    >>> list(read_members(folder, lambda name: name.endswith(".txt")))
    [('a.txt', b'one')]
    """
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if wanted(name) and not _added_by_macos(name):
                yield name, file.read_bytes()
        return
    seen: set[str] = set()
    try:
        for stored, read in _zip(path) if zipfile.is_zipfile(path) else _tar(path):
            name = str(PurePosixPath(stored))
            if not wanted(name) or _added_by_macos(name):
                continue
            if name in seen:
                raise UserError(f"{path}: {name!r} is in it twice: get it again")
            seen.add(name)
            yield name, read()
    except UserError:
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:  # of the disk, not of what is in the file
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable archive ({error}): get it again")


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
    # As a stream: looking for members in a compressed tar would read it from the start each.
    with _unzipped(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            size.add(member.name, member.size)
            if member.isfile():
                yield member.name, partial(_content, archive, member)
        while piece := file.read(2**20):  # to the end, where gzip compares its checksum
            size.add("the rest", len(piece))


def _unzipped(path: Path) -> gzip.GzipFile | BinaryIO:
    """The file, with gzip taken off: tarfile itself would not look at gzip's checksum."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # of a regular file there is one
    return file.read()


class _Size:
    """Adds up what an archive's members unpack to, and refuses too much."""

    def __init__(self, path: Path):
        self._path, self._total = path, 0
        self._most = max(TOTAL_BYTES, RATIO * path.stat().st_size)

    def add(self, name: str, size: int) -> None:
        self._total += size
        if size > MEMBER_BYTES or self._total > self._most:
            raise UserError(
                f"{self._path}: {name!r} unpacks to {size:,} bytes, all up to it to "
                f"{self._total:,}: more than is plausible, not unpacked"
            )


def read_member(path: Path, name: str) -> bytes:
    """One file of an archive.

    >>> read_member(Path(__file__).parent, "nowhere.txt")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    goat_jax.errors.UserError: ...: no 'nowhere.txt' in it: get it again
    """
    for _, data in read_members(path, name.__eq__):
        return data
    raise UserError(f"{path}: no {name!r} in it: get it again")


def unpack(path: Path, out: Path) -> Path:
    """All files of an archive in a folder; names that lead out of it are refused.

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
            raise UserError(f"{path}: the name {name!r} leads out of the archive: not unpacked")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise UserError(
                f"{path}: {name!r} is a file and a folder in it: not unpacked"
            ) from None
    return out
