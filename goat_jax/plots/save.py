"""Writes figures to files atomically: a file is either complete or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from goat_jax.errors import UserError
from goat_jax.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".pdf", ".svg")
_DPI = 150


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure to a temporary file and renames it; makes the folder if needed.

    Args:
        figure: a figure made without pyplot.
        path: a .png (150 dots per inch), .pdf or .svg file.

    Raises:
        UserError: another file type.

    >>> from matplotlib.figure import Figure
    >>> save_figure(Figure(), "run.gif")
    Traceback (most recent call last):
    goat_jax.errors.UserError: cannot draw to run.gif: end the name in .png, .pdf, .svg
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise UserError(f"cannot draw to {path.name}: end the name in {', '.join(_FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        figure.savefig(aside, format=path.suffix[1:], dpi=_DPI)
