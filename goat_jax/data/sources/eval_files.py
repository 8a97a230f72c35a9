"""Finds a task's training and evaluation files under the names their publishers gave them."""

from pathlib import Path

from goat_jax.data.sources.formats import FORMATS, find_split
from goat_jax.errors import UserError
from goat_jax.files import user_path


def has_split(folder: Path, split: str) -> bool:
    """True if a folder has a file for this split, in any format of `FORMATS`.

    >>> has_split(Path("nowhere"), "train")
    False
    """
    return any((folder / f"{split}{suffix}").is_file() for suffix in FORMATS)


def first_file(folder: str | Path, *names: str) -> str:
    """Returns the path of the first of these file names that exists in a folder, in any format.

    Raises UserError if none does.

    >>> first_file("nowhere", "metamath", "train")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere has none of the files metamath, train
    """
    root = user_path(folder)
    for name in names:
        if has_split(root, name):
            return find_split([root], name)
    raise UserError(f"{folder} has none of the files {', '.join(names)}")


def question_source(source: str | None, default: str | None = None, split: str = "test") -> str:
    """Returns the source of a task's questions.

    Args:
      source: a source string, a file, or a folder that holds the split's file; None: `default`.
      default: the source if none is given; None: a missing source is a UserError.
      split: the name of the file to look for in a folder.

    >>> question_source(None, "tfds:gsm8k@test")
    'tfds:gsm8k@test'
    """
    if source is None:
        if default is None:
            raise UserError("questions=... is missing: a file, or a folder with the questions")
        return default
    path = user_path(source)
    return find_split([path], split) if path.is_dir() else source
