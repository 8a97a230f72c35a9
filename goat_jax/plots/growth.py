"""How time and memory grow with one size after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of the best fit value ~ size^p.

    >>> round(slope([1, 2, 4], [3.0, 6.0, 12.0]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def plot_growth(
    seconds: Mapping[str, Sequence[tuple[int, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """One panel an axis: seconds against the size, both logarithmic, with the fitted exponent.

    Args:
        seconds: axis -> (size, median seconds).
        path: a .png, .pdf or .svg file.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "growth.png")
    ...     plot_growth({"rank": [(8, 0.1), (16, 0.12)]}, path, title="goat")
    ...     path.is_file()
    True
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    if not seconds:
        raise UserError("nothing to plot: give at least one axis")
    figure = Figure(figsize=(3.6 * len(seconds), 3.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    for ax, (axis, points) in zip(
        figure.subplots(1, len(seconds), squeeze=False)[0], seconds.items(), strict=True
    ):
        sizes, values = zip(*points, strict=True)
        ax.loglog(sizes, [1e3 * value for value in values], "o-", color="#0072B2")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(bottom=0.5e3 * min(values), top=2e3 * max(values))
        ax.set_xlabel(axis)
        ax.set_title(f"grows with power {slope(sizes, values):.2f}", fontsize=10)
        ax.grid(alpha=0.3, linewidth=0.6, which="both")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("forward and backward, ms")
    save_figure(figure, path)
