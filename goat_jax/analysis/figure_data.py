"""Data of the paper's figures, from run folders: scores by task, method and position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.analysis.collect_runs import Gathered, by_series

NOMINAL = 4096
"""Nominal length of a spectrum, from which `segment_position` computes a segment's position."""

Points = dict[float, list[float]]


def score_panels(
    runs: Sequence[Gathered],
    x_of: Callable[[Gathered], float | None],
    apart: Sequence[str] = (),
    metric: str | None = None,
) -> tuple[dict[str, dict[str, Points]], str]:
    """Groups the scores of runs into panels (one per task) and series (one per method).

    Scores are converted to percent if none is above 1 in absolute value. Series with fewer than
    two different x values over all tasks are left out.

    Args:
        runs: the runs to show.
        x_of: run -> its x value; None leaves the run out.
        apart: fields of the adapter that the x axis shows.
        metric: the metric to show; None for each run's `best_by` metric.

    Returns:
        task -> series -> x -> the runs' scores, and the label of the score axis.
    """
    panels: dict[str, dict[str, Points]] = {}
    names: list[str] = []
    usable = [run for run in runs if x_of(run) is not None and run.score(metric) is not None]
    for label, members in by_series(usable, apart).items():
        if len({x_of(run) for run in members}) < 2:
            continue
        for run in members:
            x, score = x_of(run), run.score(metric)
            assert x is not None and score is not None
            names.append(score[0])
            points = panels.setdefault(run.task, {}).setdefault(label, {})
            points.setdefault(x, []).append(score[1])
    if not panels:
        return {}, ""
    every = [points for series in panels.values() for points in series.values()]
    name = Counter(names).most_common(1)[0][0]
    values = [value for points in every for scores in points.values() for value in scores]
    if max(map(abs, values)) > 1:
        return panels, name
    for points in every:
        points |= {x: [100 * value for value in scores] for x, scores in points.items()}
    return panels, f"{name}, percent"


def min_max_normalised(points: Points) -> Points:
    """Scales a series so that its lowest mean is 0 and its highest 1; all are 0 if they are equal.

    >>> min_max_normalised({0.0: [80.0], 0.5: [90.0], 1.0: [85.0]})
    {0.0: [0.0], 0.5: [1.0], 1.0: [0.5]}
    """
    means = [float(np.mean(scores)) for scores in points.values()]
    low, span = min(means), max(means) - min(means)
    return {
        x: [(score - low) / span if span else 0.0 for score in scores]
        for x, scores in points.items()
    }


def segment_position(spec: AdapterSpec) -> float | None:
    """Returns the position in the spectrum of the triplets that a single LoRA starts from.

    It is 0 for the largest singular values and 1 for the smallest. It is None for specs with
    several experts, without triplets, or with a rank above half of `NOMINAL`.

    >>> from goat_jax.adapters.methods import method_spec
    >>> segment_position(method_spec("pissa")), segment_position(method_spec("milora"))
    (0.0, 1.0)
    """
    triplets = getattr(spec.initializer, "triplets", None)
    if triplets is None or spec.num_experts > 1 or spec.rank > NOMINAL // 2:
        return None
    first = int(np.asarray(triplets(NOMINAL, spec, jax.random.key(0))).min())
    return round(first / (NOMINAL - spec.rank), 3)


def constant_scale(spec: AdapterSpec) -> float | None:
    """Returns the scale of a single LoRA; None for several experts or a layer-dependent scale.

    >>> from goat_jax.adapters.methods import method_spec
    >>> constant_scale(method_spec("lora", alpha=16.0, total_rank=8))
    2.0
    >>> constant_scale(method_spec("lora", scale="theory")) is None
    True
    """
    if spec.num_experts > 1:
        return None
    narrow, wide = (float(spec.scale(width, None, spec)[0]) for width in (1, 4))
    return narrow if narrow == wide else None


def scale_and_rank(run: Gathered) -> tuple[float, int]:
    """Returns the scale and the rank of a single LoRA's run; scale 0 if it is not constant."""
    spec = run.config.adapter.spec()
    return constant_scale(spec) or 0.0, spec.total_rank


def grouped(
    runs: Sequence[Gathered], label: Callable[[Gathered], str]
) -> dict[str, list[Gathered]]:
    """Groups runs by a label, in the order in which they come."""
    groups: dict[str, list[Gathered]] = {}
    for run in runs:
        groups.setdefault(label(run), []).append(run)
    return groups


def mean_load(load: Mapping[str, Any]) -> list[np.ndarray]:
    """Returns each layer's fractions of tokens per expert (E,) from a load record.

    Layers with fewer experts than the others or with missing values are left out.

    >>> mean_load({"modules": {"q": [[0.5, 0.5], [0.25, 0.75]]}})[1].tolist()
    [0.25, 0.75]
    """
    rows = [row for layers in load["modules"].values() for row in layers]
    most = max((len(row) for row in rows), default=0)
    return [np.asarray(row, float) for row in rows if len(row) == most and None not in row]
