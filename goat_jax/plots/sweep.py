"""Scores of a sweep against each field that it goes over."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import COLORS, grid_shape, tidy, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sweep(
    axes: Mapping[str, Sequence[Any]],
    scores: Sequence[Sequence[float]],
    path: str | os.PathLike[str],
    *,
    title: str,
    y_label: str,
    log: Collection[str] = (),
) -> None:
    """Draws a panel for each field: a dot for each point, bars where it has several seeds.

    A line goes through the means of the dots above one value, where values come again.

    Args:
        axes: field -> its value at every point.
        scores: of every point, one a seed.
        path: a .png, .pdf or .svg file.
        log: fields drawn by their logarithm.

    Raises:
        UserError: nothing to draw, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "sweep.png")
    ...     plot_sweep({"rho": [1, 5]}, [[0.5], [0.6]], path, title="rho", y_label="accuracy")
    ...     path.is_file()
    True
    """
    if not axes or not scores:
        raise UserError("no points to plot: give at least one")
    save_figure(sweep_figure(axes, scores, title, y_label, log), path)


def sweep_figure(
    axes: Mapping[str, Sequence[Any]],
    scores: Sequence[Sequence[float]],
    title: str,
    y_label: str,
    log: Collection[str],
) -> Figure:
    """The figure of `plot_sweep`."""
    from matplotlib.figure import Figure

    rows, columns = grid_shape(len(axes))
    figure = Figure(figsize=(4.4 * columns + 0.8, 3.2 * rows + 0.6), layout="constrained")
    write_title(figure, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    means = np.array([np.mean(own) for own in scores])
    bars = [means - [min(own) for own in scores], [max(own) for own in scores] - means]
    several = any(len(own) > 1 for own in scores)
    for ax, (field, values) in zip(panels, axes.items(), strict=False):
        places, labels = _places(values)
        ax.errorbar(
            places,
            means,
            yerr=bars if several else None,
            fmt="o",
            markersize=4.5,
            capsize=3,
            elinewidth=0.8,
            color=COLORS[0],
            alpha=0.75,
        )
        again = sorted(set(places))
        if len(again) < len(places):
            line = [means[np.array(places) == x].mean() for x in again]
            ax.plot(again, line, color=COLORS[1], linewidth=1.2)
        if labels:
            ax.set_xticks(range(len(labels)), labels)
            ax.set_xlim(-0.5, len(labels) - 0.5)
        elif field in log or _far_apart(again):
            ax.set_xscale("log")
        ax.set_xlabel(field)
        tidy(ax, legend=False)
    for ax in panels[len(axes) :]:
        ax.set_visible(False)
    figure.supylabel(y_label, fontsize=10)
    return figure


def _far_apart(values: Sequence[float]) -> bool:
    return len(values) > 2 and values[0] > 0 and values[-1] / values[0] >= 50


def _places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where values go on the x axis, and what is written there if they are no numbers.

    >>> _places([1, 0.5]), _places(["b", "a", "b"])
    (([1.0, 0.5], []), ([0, 1, 0], ['b', 'a']))
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], []
    labels = list(dict.fromkeys(map(str, values)))
    return [labels.index(str(value)) for value in values], labels
