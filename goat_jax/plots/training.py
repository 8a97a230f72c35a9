"""Losses and evaluation metrics of a run over its steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import COLORS, MARKERS, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

_NOT_METRICS = {"kind", "step", "split", "loss", "seconds"}


def plot_training(
    records: Sequence[Record], path: str | os.PathLike[str], *, title: str = "Training run"
) -> None:
    """Draws the losses over the steps and, below, the evaluation metrics with values in [-1, 1].

    The training loss is the task's part (`task_loss`) if the records have it, since this part is
    comparable with the evaluation loss. The best value of a metric is its highest. Without losses
    or without such metrics there is only one panel.

    Args:
        records: the records that `read_records` returns; kinds other than train and eval are
            ignored.
        path: a .png, .pdf or .svg file; it is written to a temporary file and then renamed.
        title: the figure's title.

    Raises:
        UserError: nothing to draw, or another file type.

    >>> import pathlib, tempfile
    >>> records = [{"kind": "train", "step": step, "loss": 1 / step} for step in (1, 2, 3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "loss.png")
    ...     plot_training(records, path)
    ...     path.is_file()
    True
    """
    save_figure(training_figure(records, title), path)


def training_figure(records: Sequence[Record], title: str) -> Figure:
    """Returns the figure of `plot_training`."""
    train = [record for record in records if record["kind"] == "train"]
    evals = [record for record in records if record["kind"] == "eval"]
    has_losses = any("loss" in record or "task_loss" in record for record in [*train, *evals])
    metrics = _metric_series(evals)
    panels = bool(has_losses) + bool(metrics)
    if not panels:
        raise UserError("no train or eval records to plot: give those of a run that made a step")
    figure = new_figure(figsize=(10, 3.2 * panels + 0.6))
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure.suptitle(title, fontsize=13, wrap=True)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    if has_losses:
        _draw_losses(axes[0], train, evals)
    if metrics:
        _draw_metrics(axes[-1], metrics)
    for ax in axes:
        tidy(ax)
    figure.align_ylabels(axes)
    axes[-1].set_xlabel("step (optimizer updates)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def _draw_losses(ax: Axes, train: Sequence[Record], evals: Sequence[Record]) -> None:
    ax.set_title("Loss", loc="left", fontsize=11)
    ax.set_ylabel("mean loss")
    name = "task_loss" if any("task_loss" in record for record in train) else "loss"
    steps, losses = _series(train, name)
    if len(steps):
        label = "training" if name == "loss" else "training (task loss)"
        window = _window(len(steps))
        if window == 1:
            ax.plot(steps, losses, color=COLORS[0], marker=".", label=label)
        else:
            ax.plot(steps, losses, color=COLORS[0], alpha=0.3, linewidth=0.8, label=label)
            smooth = _smooth(losses, window)
            ax.plot(steps, smooth, color=COLORS[0], label=f"training, mean of {window} records")
        _mark_not_finite(ax, steps, losses)
    for index, (split, chosen) in enumerate(_by_split(evals).items(), start=1):
        steps, losses = _series(chosen, "loss")
        if len(steps):
            ax.plot(steps, losses, label=split, **_style(index))


def _mark_not_finite(ax: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    bad = steps[~np.isfinite(losses)]
    if len(bad):
        label = f"not finite: {len(bad)} records,\nfirst at step {bad[0]:,}"
        ax.axvline(bad[0], color="black", linestyle=":", linewidth=1.2, label=label)


def _draw_metrics(ax: Axes, metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    ax.set_title("Evaluation metrics", loc="left", fontsize=11)
    ax.set_ylabel("metric (1 is perfect)")
    lowest = min(float(np.nanmin(values)) for _, values in metrics.values())
    floor = math.floor(10 * lowest - 0.5) / 10  # the next tenth below, with a margin
    ax.set_ylim(floor if lowest < 0 else max(floor, 0), 1.02)
    for index, (name, (steps, values)) in enumerate(metrics.items(), start=1):
        best = int(np.nanargmax(values))
        last = f"{values[-1]:.3f}" if np.isfinite(values[-1]) else "not finite"
        label = f"{name}\nlast {last}, best {values[best]:.3f} at step {steps[best]:,}"
        ax.plot(steps, values, label=label, **_style(index))
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": _style(index)["color"]}
        ax.scatter(steps[best], values[best], s=110, linewidths=1.3, zorder=3, **ring)


def _metric_series(evals: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {label: (steps, values)} of every metric whose finite values are all in [-1, 1]."""
    series = {}
    for split, chosen in _by_split(evals).items():
        names = {name: None for record in chosen for name in record if name not in _NOT_METRICS}
        for name in names:
            steps, values = _series(chosen, name)
            finite = values[np.isfinite(values)]
            if len(finite) and np.all(np.abs(finite) <= 1):
                series[f"{split} {name}"] = steps, values
    return series


def _by_split(evals: Sequence[Record]) -> dict[str, list[Record]]:
    splits: dict[str, list[Record]] = {}
    for record in evals:
        splits.setdefault(str(record.get("split", "evaluation")), []).append(record)
    return splits


def _series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps (int) and values (float64, None as NaN) in the order of the steps.

    If a step occurs twice, its later record counts.
    """
    points = {}
    for record in records:
        value = record.get(name, "absent")
        if value is None or isinstance(value, Real):
            points[record["step"]] = np.nan if value is None else float(value)
    steps = sorted(points)
    return np.array(steps, dtype=int), np.array([points[step] for step in steps], dtype=float)


def _window(points: int) -> int:
    return 1 if points < 20 else 2 * (points // 40) + 1


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the centered moving mean of the finite values; the window is shorter at the ends."""
    finite = np.isfinite(values)
    box = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), box, mode="same")
    count = np.convolve(finite.astype(float), box, mode="same")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=finite)


def _style(index: int) -> dict[str, Any]:
    """Returns color and marker of a line, which identify it without color too."""
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    return {"color": color, "marker": marker, "markersize": 4.5, "linewidth": 1.2}
