"""Curves over the training steps of several runs, in panels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import (
    COLORS,
    LINES,
    log_axis,
    new_figure,
    shared_legend,
    tidy,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[int], Sequence[float]]
"""Steps and the values at them; NaN is a gap."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves that share their axes.

    Attributes:
        title: the panel's heading.
        y_label: the label of the y axis.
        curves: label -> the curves of its runs, one per seed; their mean and range are drawn.
        log: whether the y axis is logarithmic.
        bounds: label -> a value that no curve exceeds, drawn as a dotted line; if there are any,
            the y axis starts at 0 and shows all of them.
    """

    title: str
    y_label: str
    curves: Mapping[str, Sequence[Curve]]
    log: bool = False
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)


def plot_curves(
    grid: Sequence[Sequence[Panel]],
    path: str | os.PathLike[str],
    *,
    title: str,
    one_legend: bool = False,
) -> None:
    """Draws panels in rows. A label has the same color in all panels.

    Args:
        grid: rows of panels.
        path: a .png, .pdf or .svg file.
        title: the figure's title.
        one_legend: whether all panels share one legend.

    Raises:
        UserError: no curves, or another file type.

    >>> import pathlib, tempfile
    >>> panel = Panel("RTE", "loss", {"goat": [([1, 2], [0.7, 0.5])]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "loss.png")
    ...     plot_curves([[panel]], path, title="Loss")
    ...     path.is_file()
    True
    """
    if not any(panel.curves for row in grid for panel in row):
        raise UserError("no curves to plot: give at least one")
    save_figure(curves_figure(grid, title, one_legend), path)


def curves_figure(grid: Sequence[Sequence[Panel]], title: str, one_legend: bool) -> Figure:
    """Returns the figure of `plot_curves`."""
    rows, columns = len(grid), max(len(row) for row in grid)
    labels = list(dict.fromkeys(name for row in grid for panel in row for name in panel.curves))
    size = (max(5.0 * columns + 0.8, 8.0), 3.0 * rows + 0.8)
    figure = new_figure(figsize=size)
    write_title(figure, title)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, panels in zip(axes, grid, strict=True):
        for ax, panel in zip(row, panels, strict=False):
            _draw_panel(ax, panel, labels)
            tidy(ax, legend=len(panel.curves) + len(panel.bounds) > 1 and not one_legend)
        for ax in row[len(panels) :]:
            ax.set_visible(False)
    figure.align_ylabels(axes)
    figure.supxlabel("step (optimizer updates)", fontsize=10)
    if one_legend:
        shared_legend(figure)
    return figure


def _draw_panel(ax: Axes, panel: Panel, labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.set_title(panel.title, loc="left", fontsize=11)
    ax.set_ylabel(panel.y_label)
    for label, runs in panel.curves.items():
        index = labels.index(label)
        steps, mean, low, high = _band(runs)
        color = COLORS[index % len(COLORS)]
        line = LINES[index // len(COLORS) % len(LINES)]
        ax.plot(steps, mean, line, color=color, linewidth=1.5, label=label)
        if len(runs) > 1:
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    for label, value in panel.bounds.items():
        ax.axhline(value, color="black", linestyle=":", linewidth=1.2, label=label)
    if panel.bounds:
        ax.set_ylim(0, 1.08 * max(panel.bounds.values()))
    if panel.log:
        log_axis(ax)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _band(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps that all runs have, and the mean, lowest and highest value at each."""
    common = sorted(set.intersection(*(set(steps) for steps, _ in runs)))
    tables = [dict(zip(steps, values, strict=True)) for steps, values in runs]
    values = np.array([[table[step] for step in common] for table in tables], float)
    return np.array(common, int), values.mean(0), values.min(0), values.max(0)
