"""Scores of a sweep against each field that it varies."""

from __future__ import annotations

import os
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import COLORS, grid_shape, new_figure, tidy, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    """Draws one panel per field, with a dot for the mean of each point's scores.

    A dot has bars of one standard deviation if its point has several scores. If values of a field
    repeat, a line connects the mean of the dots at each value. A point without any score gets a
    cross at the bottom.

    Args:
        axes: field -> its value at every point.
        scores: the finite scores of every point, one per seed.
        path: a .png, .pdf or .svg file.
        title: the figure's title.
        y_label: the label of the y axis.
        log: the fields with a logarithmic axis.

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
    """Returns the figure of `plot_sweep`."""
    rows, columns = grid_shape(len(axes))
    figure = new_figure(figsize=(4.4 * columns + 0.8, 3.2 * rows + 0.6))
    write_title(figure, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    scored = [place for place, of_point in enumerate(scores) if of_point]
    lost = [place for place, of_point in enumerate(scores) if not of_point]
    means = np.array([np.mean(scores[place]) for place in scored])
    spread = [
        statistics.stdev(of_point) if len(of_point) > 1 else 0.0
        for of_point in map(list, scores)
        if of_point
    ]
    for ax, (field, values) in zip(panels, axes.items(), strict=False):
        places, labels = _places(values)
        x = np.array(places)
        ax.errorbar(
            x[scored],
            means,
            yerr=spread if any(len(of_point) > 1 for of_point in scores) else None,
            fmt="o",
            markersize=4.5,
            capsize=3,
            elinewidth=0.8,
            color=COLORS[0],
            ecolor=(COLORS[0], 0.35),
            alpha=0.75,
        )
        again = sorted(set(x[scored]))
        if len(again) < len(scored):
            ax.plot(again, [means[x[scored] == at].mean() for at in again], color=COLORS[1], lw=1.2)
        if lost:
            foot = ax.get_xaxis_transform()  # x in data units, y in panel heights
            ax.scatter(
                x[lost], [0.04] * len(lost), marker="x", color="black", transform=foot, zorder=3
            )
        if labels:
            _write_words(ax, labels)
        else:
            _write_numbers(ax, sorted(set(places)), field in log)
        ax.set_xlabel(field)
        tidy(ax, legend=False)
    for ax in panels[len(axes) :]:
        ax.set_visible(False)
    figure.supylabel(y_label, fontsize=10)
    if lost:
        figure.supxlabel("× at the bottom: a point whose runs all diverged", fontsize=9)
    return figure


def _write_words(ax: Axes, labels: Sequence[str]) -> None:
    """Labels the x axis with words, one tick each.

    Long words are abbreviated in the middle and wrapped, or turned upright if there are many.
    """
    short = [text if len(text) <= 24 else f"{text[:12]}…{text[-11:]}" for text in labels]
    room = 40 // len(labels)  # characters below a panel, for each
    upright = max(map(len, short)) > room and len(labels) > 4
    if not upright:
        short = ["\n".join(textwrap.wrap(text, room)) for text in short]
    ax.set_xticks(range(len(labels)), short, rotation=90 if upright else 0)
    ax.set_xlim(-0.5, len(labels) - 0.5)


def _write_numbers(ax: Axes, values: Sequence[float], log: bool) -> None:
    """Puts a tick at each value if the values are far enough apart, otherwise at round numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    log = log or _far_apart(values)
    if log:
        ax.set_xscale("log")
    at = np.log(values) if log else np.array(values)
    apart = len(at) < 2 or np.diff(at).min() >= 0.18 * (at[-1] - at[0])
    if apart:
        ax.set_xticks(values, [f"{value:g}" for value in values])
    elif log:
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if not apart:
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _far_apart(values: Sequence[float]) -> bool:
    return len(values) > 2 and values[0] > 0 and values[-1] / values[0] >= 50


def _places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Returns the values' positions on the x axis, and the labels there if they are not numbers.

    >>> _places([1, 0.5]), _places(["b", "a", "b"])
    (([1.0, 0.5], []), ([0, 1, 0], ['b', 'a']))
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], []
    labels = list(dict.fromkeys(map(str, values)))
    return [labels.index(str(value)) for value in values], labels
