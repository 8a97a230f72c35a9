"""Heat maps of tables of numbers: one panel per table, all on one color scale."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import grid_shape, new_figure, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOM = 16
"""Largest number of rows or columns that each get a tick."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Color scale of heat maps.

    Attributes:
        label: the label of the color bar.
        even: the value drawn white, with purple below and orange above; None for a scale from
            light to dark.
        bottom: the lower end of the scale; None for the smallest value of the tables.
        top: the upper end of the scale; None for the largest value of the tables.
    """

    label: str
    even: float | None = None
    bottom: float | None = 0.0
    top: float | None = None


def plot_heatmaps(
    tables: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    scale: Scale,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
) -> None:
    """Draws tables of numbers as heat maps; NaN is gray.

    Args:
        tables: heading -> numbers (rows, columns), all of one shape.
        path: a .png, .pdf or .svg file.
        title: the figure's title.
        x_label: the label of the x axis.
        y_label: the label of the y axis.
        scale: the color scale.
        columns: the names of the columns; None to number them from 0.
        rows: the names of the rows; None to number them from 0.

    Raises:
        UserError: no tables, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "norms.png")
    ...     labels = {"title": "Norms", "x_label": "expert", "y_label": "layer"}
    ...     plot_heatmaps({"query": np.eye(2)}, path, **labels, scale=Scale("norm"))
    ...     path.is_file()
    True
    """
    if not tables:
        raise UserError("no tables to plot: give at least one")
    save_figure(
        heatmaps_figure(tables, title, x_label, y_label, scale, columns, rows),
        path,
    )


def heatmaps_figure(
    tables: Mapping[str, np.ndarray],
    title: str,
    x_label: str,
    y_label: str,
    scale: Scale,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
) -> Figure:
    """Returns the figure of `plot_heatmaps`."""
    height, width = next(iter(tables.values())).shape
    down, across = grid_shape(len(tables))
    size = (
        across * min(max(0.3 * width, 2.2), 4.5) + 1.6 + 0.08 * max(map(len, rows or [""])),
        down * (min(max(0.22 * height, 1.3), 4.5) + 0.5) + 1.0,
    )
    figure = new_figure(figsize=(max(size[0], 5.5), size[1]))
    write_title(figure, title)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    norm = _norm(tables, scale)
    for ax, (name, table) in zip(grid, tables.items(), strict=False):
        ax.imshow(
            table,
            cmap="viridis_r" if scale.even is None else "PuOr_r",
            norm=norm,
            aspect="auto",
            interpolation="nearest",
        )
        ax.set_facecolor("0.85")
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=8, length=2)
        _name_ticks(ax, "x", width, columns)
        _name_ticks(ax, "y", height, rows)
    for ax in grid[len(tables) :]:
        ax.set_visible(False)
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    bar = figure.colorbar(grid[0].images[0], ax=list(grid), aspect=35, pad=0.02)
    bar.set_label(scale.label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _norm(tables: Mapping[str, np.ndarray], scale: Scale):
    from matplotlib.colors import Normalize, TwoSlopeNorm

    finite = np.concatenate([table[np.isfinite(table)].ravel() for table in tables.values()])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    bottom = low if scale.bottom is None else scale.bottom
    top = high if scale.top is None else scale.top
    if scale.even is None:
        return Normalize(bottom, max(top, bottom + 1e-6))
    return TwoSlopeNorm(scale.even, vmin=bottom, vmax=max(top, 1.01 * scale.even))


def _name_ticks(ax: Axes, axis: str, count: int, names: Sequence[str] | None) -> None:
    every = max(1, -(-count // _ROOM))
    places = range(0, count, every)
    labels = [str(place) if names is None else names[place] for place in places]
    long = axis == "x" and max(map(len, labels)) > 4
    getattr(ax, f"set_{axis}ticks")(places, labels, rotation=90 if long else 0)
