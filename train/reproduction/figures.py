"""Draws the paper's figures 1, 2, 4, 5, 6 and 7 from the available run folders."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from goat_jax.analysis.collect_runs import Gathered, by_series
from goat_jax.analysis.figure_data import (
    constant_scale,
    grouped,
    mean_load,
    min_max_normalised,
    scale_and_rank,
    score_panels,
    segment_position,
)
from goat_jax.plots.compare import smooth
from goat_jax.plots.curves import Curve, Panel, plot_curves
from goat_jax.plots.scores import plot_scores
from goat_jax.plots.shares import plot_shares
from goat_jax.plots.style import grid_shape


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
        shows: a short description of the figure.
        needs: a short description of the runs that it needs.
        draw: (runs, path, metric) -> True if the runs were sufficient and the figure was drawn.
    """

    shows: str
    needs: str
    draw: Callable[[Sequence[Gathered], Path, str | None], bool]


def draw_figures(
    runs: Sequence[Gathered],
    out: Path,
    metric: str | None = None,
    numbers: Iterable[int] | None = None,
) -> tuple[list[Path], list[str]]:
    """Draws every figure for which the runs are sufficient, as OUT/figureN.png.

    Args:
        runs: the available runs.
        out: the folder for the figures.
        metric: the score to show; None for the one by which each run chose its best checkpoint.
        numbers: the figures to draw; None for all.

    Returns:
        The files drawn, and a line for each figure that lacks runs.
    """
    drawn, lacking = [], []
    for number in FIGURES if numbers is None else numbers:
        figure = FIGURES[number]
        path = out / f"figure{number}.png"
        if figure.draw(runs, path, metric):
            drawn.append(path)
        else:
            lacking.append(f"figure {number} ({figure.shows}) needs {figure.needs}")
    return drawn, lacking


def _figure_1(runs: Sequence[Gathered], path: Path, metric: str | None) -> bool:
    panels, name = score_panels(
        runs,
        lambda run: segment_position(run.config.adapter.spec()),
        ("method", "segments", "offset"),
        metric,
    )
    if not panels:
        return False
    panels = {
        task: {label: min_max_normalised(points) for label, points in series.items()}
        for task, series in panels.items()
    }
    plot_scores(
        panels,
        path,
        title="Where in the spectrum a single LoRA starts",
        x_label="place of its segment (0: largest singular values, 1: smallest)",
        y_label=f"{name.removesuffix(', percent')}, min-max normalised",
    )
    return True


def _figure_2(runs: Sequence[Gathered], path: Path, metric: str | None) -> bool:
    del metric
    single = [run for run in runs if constant_scale(run.config.adapter.spec()) is not None]
    plain = [run for run in single if run.series("loss")[0]]
    groups = grouped(plain, lambda run: f"{run.task}, {run.config.adapter.method}")
    heading = max(groups, key=lambda name: len(set(map(scale_and_rank, groups[name]))), default="")
    best = groups.get(heading, [])
    columns = [_by_scale(best), _by_rank(best)]
    columns = [(title, group) for title, group in columns if len(group) > 1]
    if not columns:
        return False
    grid = [
        [Panel(title, y_label, _curves(group, field), log=True) for title, group in columns]
        for field, y_label in (("loss", "training loss"), ("grad_norm", "gradient norm"))
    ]
    plot_curves(grid, path, title=f"Loss and gradient norm against scale and rank ({heading})")
    return True


def _by_scale(runs: Sequence[Gathered]) -> tuple[str, dict[str, list[Gathered]]]:
    """Returns a title and, by scale, the runs of the rank that occurs with the most scales."""
    counts = Counter(rank for _, rank in set(map(scale_and_rank, runs)))
    rank = counts.most_common(1)[0][0] if counts else 0
    chosen = sorted((run for run in runs if scale_and_rank(run)[1] == rank), key=scale_and_rank)
    return f"rank {rank}", grouped(chosen, lambda run: f"s = {scale_and_rank(run)[0]:g}")


def _by_rank(runs: Sequence[Gathered]) -> tuple[str, dict[str, list[Gathered]]]:
    """Returns a title and, by rank, the runs of the scale that occurs with the most ranks."""
    counts = Counter(scale for scale, _ in set(map(scale_and_rank, runs)))
    scale = counts.most_common(1)[0][0] if counts else 0.0
    chosen = sorted((run for run in runs if scale_and_rank(run)[0] == scale), key=scale_and_rank)
    return f"scale s = {scale:g}", grouped(chosen, lambda run: f"r = {scale_and_rank(run)[1]}")


def _curves(groups: Mapping[str, Sequence[Gathered]], field: str) -> dict[str, list[Curve]]:
    return {label: [_smoothed(run, field) for run in runs] for label, runs in groups.items()}


def _smoothed(run: Gathered, field: str) -> Curve:
    steps, values = run.series(field)
    return steps, smooth(np.asarray(values, float)).tolist()


def _figure_4(runs: Sequence[Gathered], path: Path, metric: str | None) -> bool:
    del metric
    known = [run for run in runs if run.series("task_loss")[0]]
    curves: dict[str, dict[str, list[Curve]]] = {}
    for label, members in by_series(known).items():
        for run in members:
            of_task = curves.setdefault(run.task, {})
            of_task.setdefault(label, []).append(_smoothed(run, "task_loss"))
    panels = [Panel(task, "training loss", own) for task, own in curves.items() if len(own) > 1]
    if not panels:
        return False
    _, columns = grid_shape(len(panels), most=2)
    grid = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    title = "Training loss by method (moving mean over a tenth of the run)"
    plot_curves(grid, path, title=title, one_legend=True)
    return True


def _figure_5(runs: Sequence[Gathered], path: Path, metric: str | None) -> bool:
    panels, name = score_panels(
        runs, lambda run: run.config.adapter.spec().total_rank, ("total_rank",), metric
    )
    if panels:
        labels = {"x_label": "total rank", "y_label": name}
        plot_scores(panels, path, title="Score against rank", doubling=True, **labels)
    return bool(panels)


def _figure_6(runs: Sequence[Gathered], path: Path, metric: str | None) -> bool:
    routed = [run for run in runs if run.config.adapter.spec().num_experts > 1]
    panels, name = score_panels(
        routed, lambda run: run.config.adapter.spec().num_experts, ("num_experts",), metric
    )
    if panels:
        labels = {"x_label": "experts", "y_label": name}
        title = "Score against experts and active experts"
        plot_scores(panels, path, title=title, doubling=True, **labels)
    return bool(panels)


def _figure_7(runs: Sequence[Gathered], path: Path, metric: str | None) -> bool:
    del metric
    routed = [run for run in runs if run.config.adapter.spec().num_experts > 1]
    loads = {}
    for label, members in by_series(routed).items():
        for task, own in grouped(members, lambda run: run.task).items():
            rows = [row for run in own if (load := run.last("load")) for row in mean_load(load)]
            if rows:
                loads[f"{task}, {label}"] = np.mean(rows, axis=0).tolist()
    if loads:
        plot_shares(loads, path, title="Share of tokens per expert, percent")
    return bool(loads)


FIGURES: dict[int, PaperFigure] = {
    1: PaperFigure(
        "score against the segment a single LoRA starts from",
        "finished runs of pissa with several values of offset",
        _figure_1,
    ),
    2: PaperFigure(
        "loss and gradient norm against scale and rank",
        "runs of one single LoRA with several scales or ranks",
        _figure_2,
    ),
    4: PaperFigure("loss curves by method", "runs of two methods on one task", _figure_4),
    5: PaperFigure("score against rank", "finished runs of a method at two ranks", _figure_5),
    6: PaperFigure(
        "score against experts and active experts",
        "finished runs of a mixture with two numbers of experts",
        _figure_6,
    ),
    7: PaperFigure("share of tokens per expert, by task", "a run of a mixture", _figure_7),
}
"""Number of a figure in the paper -> the figure."""
