"""Opens a GGUF file, checks it, and reads its metadata and tensors.

GGUF is llama.cpp's format: one file with the model's settings, its tokenizer and its (usually
quantized) weights. The package `gguf` parses it; it is an extra, imported only here and where
tensors are dequantized.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goat_jax.errors import UserError, first_line
from goat_jax.extras import import_extra
from goat_jax.files import user_path

MAGIC = b"GGUF"
SUFFIX = ".gguf"


@dataclass(frozen=True, eq=False)
class GgufFile:
    """An open GGUF file.

    Attributes:
        path: the file.
        fields: metadata key -> the package's field, decoded on access, since a vocabulary is long.
        tensors: llama.cpp's tensor name -> the package's tensor, mapped from disk.
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def get(self, key: str, default: object = None) -> Any:
        """Returns a metadata value as int, float, bool, str or list; the default if absent."""
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key: str) -> Any:
        """Returns a metadata value; raises `UserError` if the file has none."""
        if key not in self.fields:
            raise UserError(f"{self.path} has no {key}: convert the model with a current llama.cpp")
        return self.fields[key].contents()


def import_gguf(path: Path) -> Any:
    """Imports the package `gguf`; if it is not installed, raises `UserError` with the extra."""
    return import_extra("gguf", f"{path}: reading GGUF")


def read_gguf(path: str | Path) -> GgufFile:
    """Opens a GGUF file; weights stay on disk. The last one is kept, since parsing takes seconds.

    Raises:
        UserError: a missing file, one that is no GGUF, a truncated or damaged one, or the package
            `gguf` is not installed.

    >>> read_gguf("nowhere.gguf")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.gguf: no such file
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise UserError(f"{path} is not a GGUF file (it starts with {start!r}): give a .gguf file")
    about = path.stat()
    return _parse(path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _parse(path: Path, identity: tuple[int, ...]) -> GgufFile:
    """Parses a GGUF file; `identity` is that of its contents."""
    del identity
    gguf = import_gguf(path)
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the exception's type depends on where the file ends
        raise UserError(
            f"{path} is damaged or truncated at {path.stat().st_size} bytes"
            f" ({first_line(error)}): fetch it again"
        ) from None
    return GgufFile(path, dict(reader.fields), {tensor.name: tensor for tensor in reader.tensors})
