"""Scores against a number such as the rank: one line per series, one panel per task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import grid_shape, marked, new_figure, shared_legend, tidy, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[float, Sequence[float]]]
"""Series -> position on the x axis -> the scores of its runs, one per seed."""


def plot_scores(
    panels: Mapping[str, Scores],
    path: str | os.PathLike[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    doubling: bool = False,
) -> None:
    """Draws the mean of the scores at every point, with bars of their range if there are several.

    Args:
        panels: heading -> series of one panel.
        path: a .png, .pdf or .svg file.
        title: the figure's title.
        x_label: the label of the x axis.
        y_label: the label of the y axis.
        doubling: whether the x axis is logarithmic to base 2, with a tick at each point.

    Raises:
        UserError: nothing to draw, or another file type.

    >>> import pathlib, tempfile
    >>> scores = {"rte": {"goat": {8: [85.0, 86.0], 16: [86.5]}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "rank.png")
    ...     plot_scores(scores, path, title="Rank", x_label="rank", y_label="score", doubling=True)
    ...     path.is_file()
    True
    """
    if not any(panels.values()):
        raise UserError("no scores to plot: give at least one series")
    save_figure(scores_figure(panels, title, x_label, y_label, doubling), path)


def scores_figure(
    panels: Mapping[str, Scores], title: str, x_label: str, y_label: str, doubling: bool
) -> Figure:
    """Returns the figure of `plot_scores`."""
    rows, columns = grid_shape(len(panels))
    figure = new_figure(figsize=(max(4.4 * columns, 5.5) + 1.6, 3.2 * rows + 0.6))
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    write_title(figure, title if len(names) > 1 else f"{title} ({names[0]})")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (heading, series) in zip(axes, panels.items(), strict=False):
        ax.set_title(heading, loc="left", fontsize=11)
        for name, points in series.items():
            _draw(ax, points, name, names.index(name))
        every = sorted({x for points in series.values() for x in points})
        if doubling:
            ax.set_xscale("log", base=2)
            ax.set_xticks(every, [f"{x:g}" for x in every])
            ax.minorticks_off()
        tidy(ax, legend=False)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    if len(names) > 1:
        shared_legend(figure)
    return figure


def _draw(ax: Axes, points: Mapping[float, Sequence[float]], name: str, index: int) -> None:
    xs = sorted(points)
    means = np.array([np.mean(points[x]) for x in xs])
    low = means - [min(points[x]) for x in xs]
    high = [max(points[x]) for x in xs] - means
    bars = [low, high] if any(len(points[x]) > 1 for x in xs) else None
    ax.errorbar(xs, means, yerr=bars, label=name, capsize=3, elinewidth=0.8, **marked(index))
