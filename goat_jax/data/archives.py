"""Members of zip and tar archives, and files of folders, read without unpacking them."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from goat_jax.errors import UserError


def read_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every wanted file, in the archive's order.

    Args:
      path: a zip or tar file, compressed or not, whatever its ending, or a folder.
      wanted: name inside -> whether it is read; names have forward slashes.

    Raises UserError if the archive is damaged or of another kind.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_bytes(b"one")
    >>> list(read_members(folder, lambda name: name.endswith(".txt")))
    [('a.txt', b'one')]
    """
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if wanted(name):
                yield name, file.read_bytes()
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if not name.endswith("/") and wanted(name):
                        yield name, archive.read(name)
            return
        # As a stream: looking for members in a compressed tar would read it from the start each.
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and wanted(member.name.removeprefix("./")):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name.removeprefix("./"), file.read()
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f"{path}: not a readable archive ({error}): get it again") from None


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
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return out
