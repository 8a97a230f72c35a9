"""Growth of time and memory with each size of a layer, on logarithmic axes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Returns the exponent p of the best fit value ~ size^p.

    >>> round(slope([1, 2, 4], [3.0, 6.0, 12.0]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


Point = tuple[int, float, float]
"""Size, seconds and temporary bytes of one measurement."""


def plot_growth(
    points: Mapping[str, Sequence[Point]], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draws time above memory in one column per axis, all logarithmic, with the fitted exponents.

    Args:
        points: axis (such as the rank) -> its measurements.
        path: a .png, .pdf or .svg file.
        title: the figure's title.

    Raises:
        UserError: no points, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "growth.png")
    ...     plot_growth({"rank": [(8, 0.1, 1e6), (16, 0.12, 2e6)]}, path, title="goat")
    ...     path.is_file()
    True
    """
    if not points:
        raise UserError("nothing to plot: give at least one axis")
    figure = new_figure(figsize=(3.4 * len(points), 5.6))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    panels = figure.subplots(2, len(points), squeeze=False, sharey="row")
    for (above, below), (axis, of_axis) in zip(panels.T, points.items(), strict=True):
        sizes, seconds, sizes_in_bytes = zip(*of_axis, strict=True)
        _draw(above, sizes, [1e3 * value for value in seconds])
        _draw(below, sizes, [value / 2**20 for value in sizes_in_bytes])
        below.set_xlabel(axis)
    panels[0, 0].set_ylabel("forward and backward, ms")
    panels[1, 0].set_ylabel("temporaries, MiB")
    save_figure(figure, path)


def _draw(ax: Axes, sizes: Sequence[float], values: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    ax.loglog(sizes, values, "o-", color=COLORS[0])
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title(f"grows with power {slope(sizes, values):.2f}", fontsize=10)
    ax.grid(alpha=0.3, linewidth=0.6, which="both")
    ax.spines[["top", "right"]].set_visible(False)
