"""Expert load: a heat map of the share of tokens per expert and layer, for each kind of module."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import new_figure, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

# Shares above four times the even one get the same color: one hot expert would otherwise make all
# the others look pale.
_RATIO_LIMIT = 4.0


def plot_expert_load(
    records: Record | Sequence[Record], path: str | os.PathLike[str], *, title: str = "Expert load"
) -> None:
    """Draws the share of tokens per expert (columns) and layer (rows), a panel per kind of module.

    Colors compare a share with the even one, 1/E: white is even, purple less, orange more, gray has
    no value. The number in a cell, if there is room for it, is the share in percent.

    Args:
        records: one load record, or many records, of which the last load record is drawn.
        path: a .png, .pdf or .svg file; it is written to a temporary file and then renamed.
        title: the figure's title.

    Raises:
        UserError: no load record, a record without shares, or another file type.

    >>> import pathlib, tempfile
    >>> modules = {"model.layers.{}.self_attn.q_proj": [[0.5, 0.5], [0.9, 0.1]]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "load.png")
    ...     plot_expert_load({"kind": "load", "step": 10, "modules": modules}, path)
    ...     path.is_file()
    True
    """
    save_figure(expert_load_figure(records, title), path)


def expert_load_figure(records: Record | Sequence[Record], title: str) -> Figure:
    """Returns the figure of `plot_expert_load`."""
    step, shares = _load_shares(records)
    # Experts that a layer does not have are NaN and do not count toward its even share.
    ratios = {name: share * _count(share) for name, share in shares.items()}
    columns, figsize = _layout(len(shares), *next(iter(shares.values())).shape)
    figure = new_figure(figsize=figsize)
    figure.suptitle(f"{title} at step {step:,}\n{_summary(ratios)}", fontsize=10.5, wrap=True)
    rows = math.ceil(len(shares) / columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    highest = max(float(np.nanmax(ratio)) for ratio in ratios.values() if _count(ratio).any())
    for ax, label, ratio in zip(grid, short_names(list(shares)), ratios.values(), strict=False):
        _draw_load(ax, ratio, label, highest)
    for ax in grid[len(shares) :]:
        ax.set_visible(False)
    figure.supxlabel("expert", fontsize=10)
    figure.supylabel("layer", fontsize=10)
    _draw_bar(figure, grid, highest)
    # Lay out before printing numbers: their size depends on the cells' size, and thousands of texts
    # would slow the layout down.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax, share in zip(grid, shares.values(), strict=False):
        _print_shares(ax, share, figure.dpi)
    return figure


def _draw_load(ax: Axes, ratio: np.ndarray, label: str, highest: float) -> None:
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator

    norm = TwoSlopeNorm(1.0, vmin=0.0, vmax=min(max(highest, 2.0), _RATIO_LIMIT))
    ax.imshow(ratio, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_facecolor("0.85")
    ax.set_title(label, fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    ax.tick_params(labelsize=8, length=2)


def _draw_bar(figure: Figure, grid: np.ndarray, highest: float) -> None:
    image = grid[0].images[0]
    extend = "max" if highest > _RATIO_LIMIT else "neither"
    bar = figure.colorbar(image, ax=list(grid), extend=extend, aspect=35, pad=0.02)
    bar.ax.set_yscale("linear")  # the norm would give half of the bar to 0 to 1
    bar.set_ticks([tick for tick in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4) if tick <= image.norm.vmax])
    bar.ax.tick_params(labelsize=8)
    bar.set_label("share / even share (1/E)", fontsize=9)


def _print_shares(ax: Axes, share: np.ndarray, dpi: float) -> None:
    """Writes each share in percent into its cell, if the cell is large enough for three digits."""
    layers, experts = share.shape
    box = ax.get_window_extent()
    if box.width / experts < 0.22 * dpi or box.height / layers < 0.13 * dpi:
        return
    image = ax.images[0]
    colors = image.to_rgba(np.asarray(image.get_array()))
    for layer, expert in np.argwhere(np.isfinite(share)):
        brightness = colors[layer, expert, :3] @ (0.30, 0.59, 0.11)
        style: dict[str, Any] = {"color": "white" if brightness < 0.5 else "black", "fontsize": 7}
        text = f"{100 * share[layer, expert]:.0f}"
        ax.text(expert, layer, text, ha="center", va="center", **style)


def _layout(panels: int, layers: int, experts: int) -> tuple[int, tuple[float, float]]:
    """Returns the number of columns of panels and the figure's size in inches, close to 3:2."""
    width, height = 0.34 * experts, 0.19 * layers
    if width > 5.5 or height > 6.2:  # no room for numbers, so the cells can be small
        width, height = min(width, 3.2), min(height, 4.5)
    width, height = max(width, 1.8), max(height, 1.6)

    def size(columns: int) -> tuple[float, float]:
        rows = math.ceil(panels / columns)
        return max(columns * (width + 0.4) + 1.4, 6.5), rows * (height + 0.45) + 1.2

    def cost(columns: int) -> float:
        empty = -panels % columns
        return abs(math.log(size(columns)[0] / size(columns)[1] / 1.5)) + 0.25 * empty

    best = min(range(1, panels + 1), key=cost)
    return best, size(best)


def _summary(ratios: Mapping[str, np.ndarray]) -> str:
    flat = np.concatenate([ratio.ravel() for ratio in ratios.values()])
    flat = flat[np.isfinite(flat)]
    counts = {int(n) for ratio in ratios.values() for n in _count(ratio).ravel() if n}
    even = f"{100 / counts.pop():.3g} %" if len(counts) == 1 else "1/E"
    low = f"{np.sum(flat < 0.1):,} of {len(flat):,} experts below a tenth of it"
    return f"% of tokens; even share {even}; {low}"


def _count(rows: np.ndarray) -> np.ndarray:
    return np.sum(np.isfinite(rows), axis=-1, keepdims=True)


def _load_shares(records: Record | Sequence[Record]) -> tuple[int, dict[str, np.ndarray]]:
    """Returns the step and {path pattern: shares (L, E)}, all of one shape, NaN for no expert."""
    if not isinstance(records, Mapping):
        loads = [record for record in records if record["kind"] == "load"]
        if not loads:
            raise UserError("no load records to plot: give those of a run with several experts")
        records = loads[-1]
    modules = records.get("modules") or {}
    every = [row for rows in modules.values() for row in rows]
    if not any(share is not None for row in every for share in row):
        raise UserError("the load record has no shares: `modules` must be {name: rows of shares}")
    layers, experts = max(len(rows) for rows in modules.values()), max(len(row) for row in every)
    shares = {}
    for name, rows in modules.items():
        shares[name] = np.full((layers, experts), np.nan)
        for layer, row in enumerate(rows):
            shares[name][layer, : len(row)] = [np.nan if x is None else x for x in row]
    return records["step"], shares
