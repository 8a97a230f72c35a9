"""Share of tokens per expert for several tasks, one row per task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import new_figure, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RATIO_LIMIT = 2.0


def plot_shares(
    shares: Mapping[str, Sequence[float]], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draws a table of shares: white is the even share, purple less, orange more.

    Args:
        shares: name of a row -> share of the tokens that each expert gets; the sum is 1.
        path: a .png, .pdf or .svg file.
        title: the figure's title.

    Raises:
        UserError: no shares, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "shares.png")
    ...     plot_shares({"cars": [0.6, 0.4], "dtd": [0.5, 0.5]}, path, title="Two experts")
    ...     path.is_file()
    True
    """
    if not shares:
        raise UserError("no shares to plot: give those of a run with several experts")
    save_figure(shares_figure(shares, title), path)


def shares_figure(shares: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Returns the figure of `plot_shares`."""
    experts = max(len(row) for row in shares.values())
    table = np.full((len(shares), experts), np.nan)
    for line, row in zip(table, shares.values(), strict=True):
        line[: len(row)] = row
    ratio = table * np.isfinite(table).sum(1, keepdims=True)
    longest = max(len(name) for name in shares)
    size = (max(0.62 * experts + 0.09 * longest + 2.2, 6.0), 0.36 * len(shares) + 1.7)
    figure = new_figure(figsize=size)
    from matplotlib.colors import TwoSlopeNorm

    write_title(figure, title)
    ax = figure.subplots()
    norm = TwoSlopeNorm(1.0, vmin=0.0, vmax=_RATIO_LIMIT)
    image = ax.imshow(ratio, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_facecolor("0.85")
    ax.set_yticks(range(len(shares)), list(shares))
    ax.set_xticks(range(experts))
    ax.set_xlabel("expert")
    for row, column in np.argwhere(np.isfinite(table)):
        dark = abs(ratio[row, column] - 1) > 0.65
        text = f"{100 * table[row, column]:.1f}"
        color = "white" if dark else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    bar = figure.colorbar(image, ax=ax, pad=0.02, extend="max")
    bar.set_label("share / even share", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.set_ticks([0, 0.5, 1, 1.5, 2])
    return figure
