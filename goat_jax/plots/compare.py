"""Loss curves of several methods: one panel each, with the other methods' means behind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import (
    COLORS,
    grid_shape,
    hide_unused,
    log_axis,
    new_figure,
    tidy,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_comparison(
    losses: Mapping[str, Sequence[Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
    steps: int | None = None,
) -> None:
    """Draws one panel for every method with the smoothed losses of its runs and their mean.

    A run with fewer losses than steps diverged: its curve ends with a cross, and it is left out of
    the mean.

    Args:
        losses: method -> runs -> loss of every step.
        path: a .png, .pdf or .svg file.
        title: the figure's title.
        steps: the number of steps of a complete run; None for that of the longest run.

    Raises:
        UserError: no losses, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "loss.png")
    ...     plot_comparison({"goat": [[1.0, 0.5], [0.9, 0.4]]}, path, title="two seeds")
    ...     path.is_file()
    True
    """
    if not losses:
        raise UserError("no losses to plot: give at least one method")
    save_figure(comparison_figure(losses, title, steps), path)


def comparison_figure(
    losses: Mapping[str, Sequence[Sequence[float]]], title: str, steps: int | None
) -> Figure:
    """Returns the figure of `plot_comparison`."""
    longest = steps or max(len(run) for runs in losses.values() for run in runs)
    curves = {
        label: [smooth(np.asarray(run, float)) for run in runs] for label, runs in losses.items()
    }
    whole = {
        label: [c for c in of_method if len(c) == longest] for label, of_method in curves.items()
    }
    means = {label: np.mean(of_method, axis=0) for label, of_method in whole.items() if of_method}
    rows, columns = grid_shape(len(losses), most=4)
    size = (max(3.2 * columns + 0.6, 6.0), 2.6 * rows + 1.0)
    figure = new_figure(figsize=size)
    from matplotlib.ticker import MaxNLocator

    write_title(figure, title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    top = _limit(grid[0], [curve for of_method in whole.values() for curve in of_method])
    for ax, (label, of_method) in zip(grid, curves.items(), strict=False):
        for other, mean in means.items():
            if other != label:
                ax.plot(np.arange(1, longest + 1), mean, color="0.82", linewidth=1.0, zorder=1)
        _draw_runs(ax, of_method, longest, top)
        if label in means:
            ax.plot(np.arange(1, longest + 1), means[label], color=COLORS[0], linewidth=1.8)
        ax.set_title(
            _heading(label, of_method, means.get(label), longest), loc="left", fontsize=9.5
        )
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        tidy(ax, legend=False)
    hide_unused(grid, len(losses), columns)
    drawn = ["step (optimizer updates)"]
    if any(len(runs) > 1 for runs in whole.values()):
        drawn.append("thin: runs, thick: their mean")
    if len(means) > 1:
        drawn.append("grey: the other methods' means")
    figure.supxlabel("; ".join(drawn), fontsize=10)
    figure.supylabel("task loss (moving mean)", fontsize=10)
    return figure


def _limit(ax: Axes, whole: Sequence[np.ndarray]) -> float:
    """Limits the y axis to the range of the complete runs and returns its upper end.

    A diverging run would otherwise stretch the axis and flatten the other curves. The axis is
    logarithmic if the losses of complete runs differ by a factor of ten or more.
    """
    if not whole:
        return np.inf
    low, high = min(curve.min() for curve in whole), max(curve.max() for curve in whole)
    if high >= 10 * low > 0:
        log_axis(ax)
        bottom, top = low / 1.2, high * 1.2
    else:
        air = 0.05 * (high - low) or 0.05
        bottom, top = low - air, high + air
    ax.set_ylim(bottom, top)
    return top


def _draw_runs(ax: Axes, curves: Sequence[np.ndarray], longest: int, top: float) -> None:
    for curve in curves:
        steps = np.arange(1, len(curve) + 1)
        if len(curve) == longest:
            ax.plot(steps, curve, color=COLORS[0], linewidth=0.7, alpha=0.45, zorder=2)
        elif len(curve):
            clipped = np.minimum(curve, top)
            ax.plot(steps, clipped, color=COLORS[1], linewidth=0.9, linestyle="--", zorder=2)
            ax.plot(steps[-1], clipped[-1], "x", color=COLORS[1], zorder=3)


def _heading(
    label: str, curves: Sequence[np.ndarray], mean: np.ndarray | None, longest: int
) -> str:
    """Returns a panel's heading: method, mean loss at the end, and number of diverged runs.

    >>> _heading("goat", [np.ones(2), np.ones(1)], np.ones(2), 2)
    'goat: 1.000 at the end\\n1 of 2 runs diverged'
    """
    lost = sum(len(curve) < longest for curve in curves)
    label = label if len(label) <= 28 else f"{label[:14]}…{label[-13:]}"
    end = label if mean is None else f"{label}: {mean[-1]:.3f} at the end"
    return f"{end}\n{lost} of {len(curves)} runs diverged" if lost else end


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the moving mean over a window of a tenth of the run that ends at each step.

    The window is shorter at the start.

    >>> smooth(np.arange(40.0))[[0, 1, 2, 39]].tolist()
    [0.0, 0.5, 1.0, 37.5]
    """
    window = max(1, len(values) // 10)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
