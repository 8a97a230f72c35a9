"""Table and figure of how the study's runs moved their kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.plots.style import log_axis, marked, new_figure, shared_legend, tidy, write_title
from goat_jax.text_tables import render_table
from studies.movement import Movement
from studies.tasks import ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def movement_table(found: Mapping[str, Movement]) -> str:
    """Returns a row for each method, with medians of layers; of ranks and routers with means."""
    rows = [
        [
            method,
            _median(each.first_cosine),
            _median(np.multiply(each.first_cosine, each.first_length)),
            _median(each.cosine),
            _median(each.length),
            f"{each.effective_rank:.1f}",
            *(
                _first_and_last(of) if any(each.entropy) else ""
                for of in (each.entropy, each.largest_load)
            ),
        ]
        for method, each in found.items()
    ]
    headers = [
        "method",
        "first step: cosine",
        "cosine x length",
        "all steps: cosine",
        "length",
        "effective rank",
        "entropy",
        "largest load",
    ]
    return render_table(headers, rows, "lrrrrrrr", markdown=True)


def _median(values: Sequence[float] | np.ndarray) -> str:
    return f"{np.median(values):.3g}" if len(values) else ""


def _first_and_last(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} to {values[-1]:.2f}"


def movement_figure(found: Mapping[str, Movement], title: str) -> Figure:
    """Draws five panels: first step by layer and by expert, all steps, their place, entropy."""
    figure = new_figure(figsize=(12.5, 7.2))
    write_title(figure, title)
    first, experts, whole, blocks, entropy, rest = figure.subplots(2, 3).ravel()
    rest.set_visible(False)
    styles = {method: marked(number) for number, method in enumerate(ROWS)}

    def lines(
        ax: Axes, heading: str, below: str, beside: str, of: Mapping[str, Sequence[float]]
    ) -> None:
        for method, values in of.items():
            if len(values):
                ax.plot(range(1, len(values) + 1), values, label=method, **styles[method])
        ax.set_title(heading, loc="left", fontsize=10)
        ax.set_xlabel(below)
        ax.set_ylabel(beside)
        ax.locator_params(axis="x", integer=True)
        tidy(ax, legend=False)

    lines(
        first,
        "First step along full fine-tuning's",
        "layer",
        "share of its length",
        {m: np.multiply(e.first_cosine, e.first_length).tolist() for m, e in found.items()},
    )
    lines(
        experts,
        "The same by expert",
        "expert",
        "share of its length",
        {
            m: np.multiply(e.expert_cosine, e.expert_length).tolist()
            for m, e in found.items()
            if len(e.expert_cosine) > 1
        },
    )
    lines(
        whole,
        "All steps and full fine-tuning's",
        "layer",
        "cosine",
        {m: e.cosine for m, e in found.items()},
    )
    lines(
        blocks,
        "Place of the change in the spectrum",
        "eighth of the singular values (1: largest)",
        "share of the change's energy",
        {m: e.blocks for m, e in found.items()},
    )
    lines(
        entropy,
        "Entropy of the routers",
        "step",
        "share of the largest possible",
        {m: _share_of_largest(e) for m, e in found.items() if any(e.entropy)},
    )
    shared_legend(figure)
    for line in entropy.get_lines():
        line.set_marker("")
    for ax in (first, experts, blocks):
        log_axis(ax)
    return figure


def _share_of_largest(movement: Movement) -> list[float]:
    """Returns the entropy over that of experts with equal probabilities."""
    return np.divide(movement.entropy, np.log(len(movement.expert_cosine))).tolist()
