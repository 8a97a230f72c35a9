"""What the pictures have in common: colours, markers, lines, and axes without clutter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, but for yellow, which paper swallows."""

EXPERTS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#7F7F7F")
"""Fills that tell experts apart; from the ninth on they come again."""

MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")


def marked(index: int) -> dict[str, Any]:
    """Colour, line and marker of the nth series, so that it is known without the colour too.

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


def tidy(ax: Axes, *, legend: bool = True) -> None:
    """A light grid, two spines, and the legend outside, where it can hide no point."""
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)


def write_title(figure: Figure, title: str) -> None:
    """The figure's title, at its left, away from a legend at the right."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, wrap=True)


def shared_legend(figure: Figure) -> None:
    """One legend for all panels, to their right; each label once."""
    found = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside right center", frameon=False)


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def grid_shape(panels: int, most: int = 3) -> tuple[int, int]:
    """Rows and columns for so many panels, at most so many in a row.

    >>> grid_shape(1), grid_shape(4), grid_shape(7)
    ((1, 1), (2, 2), (3, 3))
    """
    columns = min(most, panels if panels < 3 else 2 if panels == 4 else 3)
    return -(-panels // columns), columns


def short_names(patterns: Sequence[str]) -> list[str]:
    """What follows the layer in each path, cut to the last words that still tell them apart.

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
