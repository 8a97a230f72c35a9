"""The report of the study: a page of tables, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from goat_jax.analysis.run_results import finite
from goat_jax.data.metrics import goodness
from goat_jax.files import write_whole
from goat_jax.plots.compare import plot_comparison
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import grid_shape, marked, new_figure, tidy, write_title
from studies.movement import movement_file, read_movements
from studies.movement_report import movement_figure, movement_table
from studies.records import Records
from studies.runs import CHOOSING, EQUAL, TEST, Stages
from studies.tables import effects_table, summary, task_table
from studies.tasks import METHODS, SIZE, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES, RATES_FIGURE = "results.md", "rates.png"


def write_report(records: Records, out: Path) -> list[Path]:
    """Writes the tables and the figures; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TABLES, tables(records, out))
    compared = only_compared(records)
    save_figure(rates_figure(compared), out / RATES_FIGURE)
    written = [out / TABLES, out / RATES_FIGURE]
    for task, methods in compared.items():
        losses = {
            method: [run.losses for run in stages[TEST]]
            for method, stages in methods.items()
            if any(run.losses for run in stages.get(TEST, ()))
        }
        if losses:
            path = out / f"losses_{task}.png"
            plot_comparison(losses, path, title=f"{TASKS[task].title}: training loss")
            written.append(path)
    return written + [
        _write_movement(task, out) for task in records if movement_file(out, task).is_file()
    ]


def _write_movement(task: str, out: Path) -> Path:
    path = out / f"movement_{task}.png"
    found = read_movements(movement_file(out, task))
    save_figure(movement_figure(found, f"{TASKS[task].title}: how kernels move"), path)
    return path


def only_compared(records: Records) -> Records:
    """Returns the records of the methods that are compared, without those of `EFFECTS`."""
    return {
        task: {method: stages for method, stages in methods.items() if method in METHODS}
        for task, methods in records.items()
    }


def tables(records: Records, out: Path) -> str:
    """Returns the summary over tasks and one section for each task, in Markdown.

    Args:
        records: the results.
        out: the folder of the movements that are kept.
    """
    compared = only_compared(records)
    sections = ["## Over all tasks", summary(compared)]
    for task, methods in compared.items():
        sections += [f"## {TASKS[task].title}", task_table(methods, TASKS[task].metric, TEST)]
        if any(stages.get(EQUAL) for stages in methods.values()):
            note = f"At as many trained parameters of adapters as {SIZE}:"
            sections += [note, task_table(methods, TASKS[task].metric, EQUAL)]
        if len(records[task]) > len(methods):
            note = "One option changed, with a learning rate of its own, and at that of the method:"
            sections += [note, effects_table(records[task], TASKS[task].metric)]
        if movement_file(out, task).is_file():
            note = "How the kernels move, beside full fine-tuning (medians over layers):"
            sections += [note, movement_table(read_movements(movement_file(out, task)))]
    return "\n\n".join(sections) + "\n"


def rates_figure(records: Records) -> Figure:
    """Draws for every method the validation scores against the learning rate, a line per task."""
    methods = list(dict.fromkeys(name for of_task in records.values() for name in of_task))
    rows, columns = grid_shape(len(methods), most=4)
    figure = new_figure(figsize=(3.0 * columns + 1.6, 2.3 * rows + 0.8))
    write_title(figure, "Validation score against learning rate")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for number, (task, of_task) in enumerate(records.items()):
        curves = rate_curves(of_task, TASKS[task].metric)
        for ax, method in zip(grid, methods, strict=False):
            if curves.get(method):
                ax.plot(*zip(*curves[method], strict=True), label=task, **marked(number))
    for ax, method in zip(grid, methods, strict=False):
        ax.set_title(method, loc="left", fontsize=9.5)
        ax.set_xscale("log")
        tidy(ax, legend=False)
    for ax in grid[len(methods) :]:
        ax.set_visible(False)
    handles, labels = max((ax.get_legend_handles_labels() for ax in grid), key=lambda h: len(h[0]))
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.supxlabel("peak learning rate", fontsize=10)
    figure.supylabel("score, from worst to best of the task", fontsize=10)
    return figure


def rate_curves(methods: Mapping[str, Stages], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Returns for every method the pairs of learning rate and score on one task's validation rows.

    A score is given as the share of the way from the worst to the best that any method reached. A
    diverged run is left out.
    """
    tried = {
        method: [
            (run.variant.learning_rate, goodness(metric, run.after[metric]))
            for run in finite(stages.get(CHOOSING, ()))
        ]
        for method, stages in methods.items()
    }
    scores_of_all = [score for points in tried.values() for _, score in points]
    low, high = min(scores_of_all, default=0.0), max(scores_of_all, default=1.0)
    width = (high - low) or 1.0
    return {
        method: sorted((rate, (score - low) / width) for rate, score in points)
        for method, points in tried.items()
    }
