"""Loss curves of several methods in one picture: the mean over seeds, and how far they spread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import COLORS, LINES, tidy


def plot_comparison(
    losses: Mapping[str, Sequence[Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draws for every method the mean of its runs' losses, smoothed, and a band of their range.

    Args:
        losses: method -> runs -> loss of every step.
        path: a .png, .pdf or .svg file.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "loss.png")
    ...     plot_comparison({"goat": [[1.0, 0.5], [0.9, 0.4]]}, path, title="two seeds")
    ...     path.is_file()
    True
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not losses:
        raise UserError("no losses to plot: give at least one method")
    figure = Figure(figsize=(10, 5), layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, loc="left", fontsize=12)
    for index, (label, runs) in enumerate(losses.items()):
        curves = np.stack([smooth(np.asarray(run, float)) for run in runs])
        steps = np.arange(1, curves.shape[1] + 1)
        color = COLORS[index % len(COLORS)]
        line = LINES[index // len(COLORS) % len(LINES)]
        ax.plot(steps, curves.mean(0), line, color=color, linewidth=1.6, label=label)
        if len(curves) > 1:
            ax.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.12, lw=0)
    ax.set_xlabel("step (optimizer updates)")
    ax.set_ylabel("task loss, moving mean over a tenth of the run")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
    save_figure(figure, path)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the last tenth of the run up to each step, over fewer steps at the start.

    >>> smooth(np.arange(40.0))[[0, 1, 2, 39]].tolist()
    [0.0, 0.5, 1.0, 37.5]
    """
    window = max(1, len(values) // 10)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
