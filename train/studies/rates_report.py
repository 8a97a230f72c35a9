"""Figure of the scores at each learning rate."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from goat_jax.analysis.run_results import finite
from goat_jax.data.metrics import goodness
from goat_jax.plots.style import (
    grid_shape,
    hide_unused,
    marked,
    new_figure,
    shared_legend,
    tidy,
    write_title,
)
from studies.records import Records
from studies.runs import CHOOSING, TEST, Stages
from studies.tasks import ROWS, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rates_figure(records: Records, labels: Container[str]) -> Figure:
    """Draws a panel for each method with its validation scores, a line for each task.

    Args:
        records: the results.
        labels: the methods to draw. Scores are shown on the scale of all methods of the task.
    """
    names = {name for of_task in records.values() for name in of_task}
    methods = [label for label in ROWS if label in labels and label in names]
    rows, columns = grid_shape(len(methods), most=4)
    figure = new_figure(figsize=(3.0 * columns + 2.6, 2.3 * rows + 0.8))
    write_title(figure, "Validation score against learning rate; ring: chosen rate")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for number, (task, of_task) in enumerate(records.items()):
        curves, ends = rate_curves(of_task, TASKS[task].metric)
        style = {**marked(number), "label": f"{TASKS[task].title}\n{ends}".replace(", ", ",\n")}
        for ax, method in zip(grid, methods, strict=False):
            if points := curves.get(method):
                ax.plot([*points], [*points.values()], **style)
                rate = _chosen(of_task[method])
                if rate in points:
                    ax.plot(rate, points[rate], "o", mfc="none", mec="0.2", markersize=9)
    for ax, method in zip(grid, methods, strict=False):
        ax.set_title(method, loc="left", fontsize=9.5)
        ax.set_xscale("log")
        tidy(ax, legend=False)
    hide_unused(grid, len(methods), columns)
    figure.supxlabel("peak learning rate", fontsize=10)
    figure.supylabel("score (0: the task's worst, 1: its best)", fontsize=10)
    shared_legend(figure)
    return figure


def _chosen(stages: Stages) -> float | None:
    at_test = stages.get(TEST)
    return at_test[0].variant.learning_rate if at_test else None


def rate_curves(
    methods: Mapping[str, Stages], metric: str
) -> tuple[dict[str, dict[float, float]], str]:
    """Returns one task's validation scores on a scale from 0 to 1, and what its ends are.

    Of a metric that is better if lower the inverse is shown, so that runs that lost everything do
    not stretch the scale. A diverged run is left out.

    Returns:
        Method -> learning rate -> score from 0, the worst of all methods, to 1, the best; and the
        ends of the scale in words.
    """
    inverse = goodness(metric, 1.0) < 0
    tried = {
        method: {
            run.variant.learning_rate: run.after[metric] ** (-1 if inverse else 1)
            for run in finite(stages.get(CHOOSING, ()))
        }
        for method, stages in methods.items()
    }
    of_all = [score for points in tried.values() for score in points.values()]
    low, high = min(of_all, default=0.0), max(of_all, default=1.0)
    width = (high - low) or 1.0
    curves = {
        method: {rate: (points[rate] - low) / width for rate in sorted(points)}
        for method, points in tried.items()
    }
    return curves, f"{'1 / ' if inverse else ''}{metric} {low:.2f} to {high:.2f}"
