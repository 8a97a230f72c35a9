"""Common style of all figures: colors, markers, lines, titles, legends and axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from goat_jax.extras import import_extra

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without yellow, which is hard to see on white."""

EXPERTS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#7F7F7F")
"""Fill colors of the experts; from the ninth expert on they repeat."""

MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")


def marked(index: int) -> dict[str, Any]:
    """Returns color, line and marker of the series `index`, which identify it without color too.

    >>> marked(0)["color"] == marked(7)["color"], marked(0)["linestyle"] == marked(7)["linestyle"]
    (True, False)
    """
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index // len(COLORS) % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.2,
    }


def new_figure(**options: Any) -> Figure:
    """Makes an empty figure without pyplot; every figure starts here, before other imports.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    matplotlib = import_extra("matplotlib.figure", "drawing figures")
    return matplotlib.Figure(**options, layout="constrained")


def tidy(ax: Axes, *, legend: bool = True) -> None:
    """Draws a light grid, two spines, and the legend outside, where it cannot hide a point."""
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)


def write_title(figure: Figure, title: str) -> None:
    """Writes the figure's title at the left, away from a legend at the right."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, wrap=True)


def shared_legend(figure: Figure) -> None:
    """Draws one legend for all panels to their right, with each label once."""
    by_label = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(by_label.values(), by_label.keys(), loc="outside right center", frameon=False)


def log_axis(ax: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def grid_shape(panels: int, most: int = 3) -> tuple[int, int]:
    """Returns the rows and columns of a grid for `panels` panels, with at most `most` in a row.

    >>> grid_shape(1), grid_shape(4), grid_shape(7)
    ((1, 1), (2, 2), (3, 3))
    """
    columns = min(most, panels if panels < 3 else 2 if panels == 4 else 3)
    return -(-panels // columns), columns


def hide_unused(grid: np.ndarray, used: int, columns: int) -> None:
    """Hides the axes after the first `used` ones of a grid with shared axes.

    Those above an empty place get their tick labels back, which shared axes hide.
    """
    for ax in grid[max(0, used - columns) : used]:
        ax.tick_params(labelbottom=True)
    for ax in grid[used:]:
        ax.set_visible(False)


def short_names(patterns: Sequence[str]) -> list[str]:
    """Shortens each path to its last words after the layer that still distinguish it.

    >>> short_names(["bert.layer.{}.attention.self.query", "bert.layer.{}.output.dense"])
    ['query', 'dense']
    """
    tails = [pattern.rpartition("{}.")[2].split(".") for pattern in patterns]

    def clashes(words: list[str]) -> int:
        return sum(tail[-len(words) :] == words for tail in tails)

    names = []
    for pattern, tail in zip(patterns, tails, strict=True):
        cuts = (tail[-length:] for length in range(1, len(tail) + 1))
        words = next((cut for cut in cuts if clashes(cut) == 1), tail)
        heading = pattern.partition(".{}")[0] + "\n" if tails.count(tail) > 1 else ""
        names.append(heading + ".".join(words))
    return names
