"""Tables and figures of the study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goat_jax.analysis.run_results import finite, mean_and_spread
from goat_jax.data.metrics import goodness
from goat_jax.files import write_whole
from goat_jax.plots.compare import plot_comparison
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import grid_shape, marked, new_figure, tidy, write_title
from goat_jax.text_tables import render_table
from goat_jax.training.vmapped_runs import RunResult
from studies.movement import movement_file, read_movements
from studies.movement_report import movement_figure, movement_table
from studies.records import Records, Stages
from studies.runs import CHOOSING, EQUAL, TEST
from studies.statistics import Interval, gap_closed, interval, paired, ranks, scores
from studies.tasks import BASELINE, FROZEN, FULL, RATES, SIZE, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES, RATES_FIGURE = "results.md", "rates.png"


def write_report(records: Records, out: Path) -> list[Path]:
    """Writes the tables and the figures; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TABLES, tables(records, out))
    save_figure(rates_figure(records), out / RATES_FIGURE)
    written = [out / TABLES, out / RATES_FIGURE]
    for task, methods in records.items():
        losses = {
            method: [run.losses for run in stages[TEST]]
            for method, stages in methods.items()
            if stages.get(TEST)
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


def tables(records: Records, out: Path) -> str:
    """Returns the summary over tasks and one section for each task, in Markdown.

    Args:
        records: the results.
        out: the folder of the movements that are kept.
    """
    sections = ["## Over all tasks", summary(records)]
    for task, methods in records.items():
        sections += [f"## {TASKS[task].title}", task_table(methods, TASKS[task].metric, TEST)]
        if any(stages.get(EQUAL) for stages in methods.values()):
            note = f"At as many trained parameters of adapters as {SIZE}:"
            sections += [note, task_table(methods, TASKS[task].metric, EQUAL)]
        if movement_file(out, task).is_file():
            note = "How the kernels move, beside full fine-tuning (medians over layers):"
            sections += [note, movement_table(read_movements(movement_file(out, task)))]
    return "\n\n".join(sections) + "\n"


def task_table(methods: Mapping[str, Stages], metric: str, stage: str) -> str:
    """Returns one task's table of a stage: scores, losses, and differences to LoRA and to full."""
    of_method = {name: found for name, s in methods.items() if (found := _at(stage, s))}
    base, full = (scores(of_method.get(name, ()), metric) for name in (BASELINE, FULL))
    rows = []
    for method, results in of_method.items():
        found, first = scores(results, metric), results[0]
        rows.append(
            [
                method,
                _rate(first.variant.learning_rate),
                f"{first.trained_parameters:,}",
                mean_and_spread(list(found.values())) if found else "diverged",
                f"{statistics.fmean(scores(results, 'loss').values()):.4f}" if found else "",
                *(_difference(found, other) for other in (base, full)),
            ]
        )
    headers = ["method", "rate", "trained", metric, "loss", f"minus {BASELINE}", f"minus {FULL}"]
    return render_table(headers, rows, "lrrrrrr", markdown=True)


def _rate(rate: float) -> str:
    """Formats a learning rate, with a star at the ends of the grid, beyond which may be better.

    >>> _rate(1e-3), _rate(1e-2)
    ('0.001', '0.01*')
    """
    return f"{rate:g}" + ("*" if rate in (RATES[0], RATES[-1]) else "")


def _at(stage: str, stages: Stages) -> Sequence[RunResult]:
    """Returns a stage's results. A method has none of its own at equal parameters if it has no
    rank or needs no other."""
    return stages.get(stage) or stages.get(TEST, ())


def _difference(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    difference = paired(one, other)
    return "" if difference is None or one == other else in_words(difference)


def in_words(found: Interval) -> str:
    """Formats a mean with its interval, in bold if 0 is outside.

    >>> in_words(Interval(0.02, 0.01)), in_words(Interval(-0.02, 0.03))
    ('**+0.0200 ± 0.0100**', '-0.0200 ± 0.0300')
    """
    text = f"{found.mean:+.4f} ± {found.half:.4f}"
    return f"**{text}**" if found.sign else text


def summary(records: Records) -> str:
    """Returns a table over all tasks: ranks, gap closed, and tasks above and below LoRA."""
    means = {task: _means(methods, TASKS[task].metric) for task, methods in records.items()}
    places = {
        task: ranks(_adapters(of_task), TASKS[task].metric) for task, of_task in means.items()
    }
    rows = []
    for method in dict.fromkeys(name for of_task in means.values() for name in of_task):
        own = [of_task[method] for of_task in places.values() if method in of_task]
        closed = list(_gaps(method, means).values())
        signs = [_sign(methods, method, TASKS[task].metric) for task, methods in records.items()]
        rows.append(
            [
                method,
                len([task for task in means.values() if method in task]),
                f"{statistics.fmean(own):.1f}" if own else "",
                _percent(closed),
                signs.count(1),
                signs.count(-1),
            ]
        )
    headers = ["method", "tasks", "mean rank", "gap closed", "above lora", "below lora"]
    return render_table(headers, rows, "lrrrrr", markdown=True)


def _means(methods: Mapping[str, Stages], metric: str) -> dict[str, float]:
    found = {name: scores(stages.get(TEST, ()), metric) for name, stages in methods.items()}
    return {name: statistics.fmean(of_seed.values()) for name, of_seed in found.items() if of_seed}


def _adapters(means: Mapping[str, float]) -> dict[str, float]:
    return {name: mean for name, mean in means.items() if name not in (FROZEN, FULL)}


def _gaps(method: str, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the share of the gap that a method closes, by task with all three scores."""
    return {
        task: gap_closed(found[method], found[FROZEN], found[FULL])
        for task, found in means.items()
        if {method, FROZEN, FULL} <= found.keys() and found[FULL] != found[FROZEN]
    }


def _percent(values: Sequence[float]) -> str:
    if not values:
        return ""
    over = interval(values)
    return f"{over.mean:.0%}" + (f" ± {over.half:.0%}" if len(values) > 1 else "")


def _sign(methods: Mapping[str, Stages], method: str, metric: str) -> int:
    """Returns 1 if a method is better than LoRA beyond its interval, -1 if worse, else 0."""
    one, other = (
        {
            seed: goodness(metric, score)
            for seed, score in scores(methods.get(name, {}).get(TEST, ()), metric).items()
        }
        for name in (method, BASELINE)
    )
    difference = paired(one, other)
    return 0 if difference is None or method == BASELINE else difference.sign


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
