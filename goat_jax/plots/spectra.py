"""Singular values of kernels, with the segments that the experts are initialized from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import EXPERTS, grid_shape, log_axis, new_figure, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Spectrum(NamedTuple):
    """Singular values of one kernel.

    Attributes:
        values: singular values (H,), descending.
        segments: indices (E, R) of the values that each expert is initialized from; None for
            methods without segments.
    """

    values: np.ndarray
    segments: np.ndarray | None


def plot_spectra(
    spectra: Mapping[str, Spectrum], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draws the values on a logarithmic scale and marks the segments in the experts' colors.

    Args:
        spectra: heading -> spectrum of one panel.
        path: a .png, .pdf or .svg file.
        title: the figure's title.

    Raises:
        UserError: no spectra, or another file type.

    >>> import pathlib, tempfile
    >>> spectrum = Spectrum(np.array([3.0, 2.0, 1.0, 0.5]), np.array([[0], [2]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "spectra.png")
    ...     plot_spectra({"query": spectrum}, path, title="Two experts")
    ...     path.is_file()
    True
    """
    if not spectra:
        raise UserError("no spectra to plot: give at least one")
    rows, columns = grid_shape(len(spectra))
    figure = new_figure(figsize=(max(3.6 * columns, 5.5), 2.5 * rows + 0.9))
    write_title(figure, title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, spectrum) in zip(grid, spectra.items(), strict=False):
        ax.set_title(name, fontsize=9, pad=14)
        _draw(ax, spectrum)
    for ax in grid[len(spectra) :]:
        ax.set_visible(False)
    figure.supxlabel("number of the singular value", fontsize=10)
    figure.supylabel("singular value", fontsize=10)
    save_figure(figure, path)


def _draw(ax: Axes, spectrum: Spectrum) -> None:
    values, segments = spectrum
    ax.plot(values, color="0.35", linewidth=1.0, zorder=2)
    for expert, index in enumerate([] if segments is None else segments):
        color = EXPERTS[expert % len(EXPERTS)]
        ax.scatter(index, values[index], s=14, color=color, zorder=3)
        ax.axvspan(index.min() - 0.5, index.max() + 0.5, color=color, alpha=0.35, linewidth=0)
        top = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 7}
        ax.annotate(str(expert), (float(np.mean(index)), 1.005), **top)
    positive = values[values > 0]
    if len(positive):
        log_axis(ax)
        ax.set_ylim(bottom=max(positive.min() * 0.8, values.max() * 1e-6))
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
