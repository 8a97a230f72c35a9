"""``goat-jax sweep``: trains one config at many points, a grid or random ones, for one table and
one figure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.analysis.run_results import (
    Runs,
    check_all_different,
    complete_runs,
    file_name,
    finite,
    score_in_words,
    standing,
)
from goat_jax.cli.arguments.config import override
from goat_jax.config.fields import with_fields
from goat_jax.config.files import load_config
from goat_jax.config.run import RunConfig
from goat_jax.errors import RunFailed, UserError
from goat_jax.extras import skipped_without_extra
from goat_jax.files import write_whole
from goat_jax.plots.sweep import plot_sweep
from goat_jax.text_tables import render_table
from goat_jax.training.vmapped_runs import RunResult, RunVariant, shared_step
from goat_jax.validation.checks import check_number

TABLE, FIGURE = "sweep.md", "sweep.png"
RATE = "optimizer.learning_rate"
"""Field whose values share one result file, as seeds do."""
GIVEN_ELSEWHERE = {"train.seed": "--seeds", "out": "--out"}

Point = tuple[tuple[str, Any], ...]
"""Pairs (field, value), in the order of the axes."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field of the config and the values to try.

    Attributes:
        field: the field's dotted name.
        values: all values to try, or the two ends of a range.
        between: whether `values` are the ends of a range, which only random points can fill.
        log: whether numbers are drawn uniformly in their logarithm, and plotted on a log axis.
    """

    field: str
    values: tuple[Any, ...]
    between: bool = False
    log: bool = False

    def draw(self, random: np.random.Generator) -> Any:
        """Draws a value: any of a list, or one within a range (an integer if both ends are)."""
        if not self.between:
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        whole = isinstance(low, int) and isinstance(high, int)
        if self.log:
            drawn = math.exp(random.uniform(math.log(low), math.log(high)))
            return min(max(round(drawn), low), high) if whole else float(f"{drawn:.4g}")
        if whole:
            return int(random.integers(low, high + 1))
        return float(f"{random.uniform(low, high):.4g}")


def sweep(
    source: str,
    over: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    draws: int | None = None,
    drawn_by: int = 0,
    seeds: Sequence[int] = (0,),
    runs_per_step: int = 1,
    out: Path,
    say: Callable[[str], None] = print,
) -> int:
    """Trains a config at every point; writes a table, best first, and a figure with a panel per
    field.

    Runs that an earlier call with the same settings has finished are not trained again. Points that
    differ only in learning rate, auxiliary weight, seed and adapter initialization share one
    compiled step, which vmaps over `runs_per_step` runs (`goat_jax.training.vmapped_runs`).

    Args:
        source: the config file.
        over: the axes, in the form that `read_axis` reads.
        overrides: ``--field value ...``, which override the config file at all points.
        draws: the number of random points; None for the grid of all values.
        drawn_by: the seed of the random points.
        seeds: the seeds that each point is trained with.
        runs_per_step: the number of runs trained in one vmapped step.
        out: the folder for the results.
        say: prints one message.

    Returns:
        The exit code.

    Raises:
        UserError: an unknown field, a value that does not fit, or a range without `draws`; before
            any run is trained.
        RunFailed: all runs diverged; the table and the numbers have been written.
    """
    check_number("--random", draws, at_least=1, whole=True, optional=True)
    check_number("--draw", drawn_by, at_least=0, whole=True)
    check_number("--runs-per-step", runs_per_step, at_least=1, whole=True)
    check_all_different("--seeds", seeds, at_least=0, whole=True)
    axes = read_axes(over)
    points = grid(axes) if draws is None else random_points(axes, draws, drawn_by)
    base = override(load_config(source), overrides, "goat-jax sweep")
    configs = {point: config_at(base, point) for point in points}  # all checked before any run
    results = _train_points(base, configs, seeds, runs_per_step, out, say)
    best_first = sorted(
        results, key=lambda point: standing(results[point], base.best_by), reverse=True
    )
    table = sweep_table({point: results[point] for point in best_first}, axes, base.task.metrics)
    _write_results(results, axes, base, table, out)
    written = " and ".join(name for name in (TABLE, FIGURE) if (out / name).exists())
    best = results[best_first[0]]
    best_line = f"best: {describe(best_first[0])}\n" if len(finite(best)) == len(best) else ""
    say(f"\n{table}\n\n{best_line}{written}: in {out}")
    if not any(map(finite, results.values())):
        raise RunFailed("all runs diverged: lower the learning rate or check the data")
    if not best_line:
        say("some runs diverged at every point: no point is reported as the best")
    return 0


def _train_points(
    base: RunConfig,
    configs: Mapping[Point, RunConfig],
    seeds: Sequence[int],
    runs_per_step: int,
    out: Path,
    say: Callable[[str], None],
) -> dict[Point, list[RunResult]]:
    """Trains every point with every seed; returns the results by point."""
    groups = _side_by_side(_by_base(list(configs)), configs)
    runs_by_group = [
        Runs(
            _at_rate(configs[group[0]], base),
            [RunVariant(seed, rate) for rate in _rates(group, configs) for seed in seeds],
            out / f"{file_name(describe(shared)) or 'point'}.json",
        )
        for shared, group in groups.items()
    ]
    results: dict[Point, list[RunResult]] = {}
    for (shared, group), (runs, done) in zip(
        groups.items(), complete_runs(runs_by_group, runs_per_step), strict=True
    ):
        for point in group:
            rate = configs[point].optimizer.learning_rate
            results[point] = [result for result in done if result.variant.learning_rate == rate]
        say(f"{describe(shared) or 'learning rates'}: {len(runs.variants)} runs")
    return results


def _write_results(
    results: Mapping[Point, Sequence[RunResult]],
    axes: Sequence[Axis],
    base: RunConfig,
    table: str,
    out: Path,
) -> None:
    """Writes the table, and the figure if matplotlib is installed."""
    metric = base.best_by
    write_whole(out / TABLE, table + "\n")
    with skipped_without_extra(FIGURE):
        plot_sweep(
            {axis.field: [dict(point)[axis.field] for point in results] for axis in axes},
            [[o.after[metric] for o in finite(of_point)] for of_point in results.values()],
            out / FIGURE,
            title=f"{base.task.name}: {metric} at {len(results)} points",
            y_label=metric,
            log={axis.field for axis in axes if axis.log},
        )


def read_axes(over: Sequence[str]) -> list[Axis]:
    """Reads the axes of a command line, each over a different field.

    Raises:
        UserError: an axis that cannot be read, or a field given twice.
    """
    axes = [read_axis(text) for text in over]
    fields = [axis.field for axis in axes]
    twice = [field for place, field in enumerate(fields) if field in fields[:place]]
    if twice:
        raise UserError(f"--over has {twice[0]} twice: give all its values in one list")
    return axes


def read_axis(text: str) -> Axis:
    """Reads ``FIELD=V,V,...`` or ``FIELD=LOW..HIGH[:log]``; values are parsed as JSON if possible.

    >>> read_axis("adapter.rho=1,5,10").values
    (1, 5, 10)
    >>> axis = read_axis("optimizer.learning-rate=1e-5..1e-3:log")
    >>> axis.field, axis.values, axis.between, axis.log
    ('optimizer.learning_rate', (1e-05, 0.001), True, True)
    """
    name, equals, rest = text.partition("=")
    field = name.strip().replace("-", "_")
    if not equals or not rest:
        raise UserError(
            f"--over {text!r} is not of the form FIELD=V,V,... or FIELD=LOW..HIGH[:log]"
        )
    if field in GIVEN_ELSEWHERE:
        raise UserError(f"{field} cannot be swept with --over: use {GIVEN_ELSEWHERE[field]}")
    if ".." in rest:
        return _read_range(text, field, rest)
    values = tuple(_value(each, text) for each in rest.split(","))
    # 1 and 1.0 are one value. True equals 1 in Python but is a different value of a config.
    if len({(isinstance(value, bool), value) for value in values}) < len(values):
        raise UserError(f"--over {text}: a value is given twice")
    return Axis(field, values)


def _read_range(text: str, field: str, rest: str) -> Axis:
    span, colon, word = rest.partition(":")
    low, high = (_value(end, text) for end in span.split("..", 1))
    log = bool(colon)
    if log and word != "log":
        raise UserError(
            f"--over {text}: {word!r} is not valid: give log or nothing after the range"
        )
    if not (_is_number(low) and _is_number(high) and low < high and not (log and low <= 0)):
        raise UserError(
            f"--over {text}: a range takes two numbers, the smaller first (above 0 with :log)"
        )
    for end in (low, high):
        check_number(f"--over {text}:", end, at_least=-LARGEST, at_most=LARGEST)
    return Axis(field, (low, high), between=True, log=log)


LARGEST = 1e15
"""Largest magnitude of a range's ends; integers up to it are exact in float64."""


def _value(text: str, where: str) -> Any:
    """Reads a JSON number, string, true, false or null; any other text is a string."""
    if not text.strip():
        raise UserError(f"--over {where}: a value is empty")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text.strip()
    if isinstance(value, list | dict):
        raise UserError(f"--over {where}: {text} is not a single value")
    if _is_number(value):
        check_number(f"--over {where}:", value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Returns every combination of values; the last axis varies fastest.

    >>> grid([Axis("a", (1, 2)), Axis("b", ("x",))])
    [(('a', 1), ('b', 'x')), (('a', 2), ('b', 'x'))]
    """
    for axis in axes:
        if axis.between:
            raise UserError(
                f"{axis.field} has a range, from which a grid takes no points: list values, or "
                "add --random N"
            )
    names = [axis.field for axis in axes]
    combinations = itertools.product(*(axis.values for axis in axes))
    return [tuple(zip(names, values, strict=True)) for values in combinations]


def random_points(axes: Sequence[Axis], count: int, seed: int) -> list[Point]:
    """Draws `count` different random points, or fewer if there are not that many.

    The first points stay the same when `count` grows.

    >>> random_points([read_axis("a=1,2")], 9, seed=0)
    [(('a', 2),), (('a', 1),)]
    """
    random = np.random.default_rng(seed)
    points: dict[Point, None] = {}
    for _ in range(100 * count):
        points[tuple((axis.field, axis.draw(random)) for axis in axes)] = None
        if len(points) == count:
            break
    return list(points)


def config_at(base: RunConfig, point: Point) -> RunConfig:
    """Returns the config at a point.

    Raises:
        UserError: a field that the config does not have, or a value that does not fit.
    """
    return with_fields(base, dict(point))


def _by_base(points: Sequence[Point]) -> dict[Point, list[Point]]:
    """Groups the points that differ only in learning rate, by the rest of the point."""
    groups: dict[Point, list[Point]] = {}
    for point in points:
        shared = tuple(pair for pair in point if pair[0] != RATE)
        groups.setdefault(shared, []).append(point)
    return groups


def _side_by_side(
    groups: Mapping[Point, list[Point]], configs: Mapping[Point, RunConfig]
) -> dict[Point, list[Point]]:
    """Returns the groups, ordered so that groups that can share a compiled step are adjacent."""
    steps: list[Any] = []  # a list: configs with list fields cannot be hashed

    def place(entry: tuple[Point, list[Point]]) -> int:
        step = shared_step(configs[entry[1][0]])
        if step not in steps:
            steps.append(step)
        return steps.index(step)

    return dict(sorted(groups.items(), key=place))


def _rates(group: Sequence[Point], configs: Mapping[Point, RunConfig]) -> list[float]:
    return list(dict.fromkeys(configs[point].optimizer.learning_rate for point in group))


def _at_rate(config: RunConfig, base: RunConfig) -> RunConfig:
    """Returns `config` with the learning rate of `base`, which that of each variant replaces.

    So the result file's settings do not depend on the learning rates that are swept over, and a
    later call recognizes them.
    """
    rate = base.optimizer.learning_rate
    return dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate)
    )


def describe(point: Point) -> str:
    """Returns a point in the form of the command line.

    >>> describe((("adapter.rho", 5), ("train.steps", 10)))
    'adapter.rho=5 train.steps=10'
    """
    return " ".join(f"{name}={value}" for name, value in point)


def sweep_table(
    results: Mapping[Point, Sequence[RunResult]], axes: Sequence[Axis], metrics: Sequence[str]
) -> str:
    """Returns a Markdown table: one row per point, with mean and spread of its scores over seeds.

    Args:
        results: point -> the results of its runs.
        axes: the axes, each a column.
        metrics: names of the task's metrics, each a column.
    """
    rows = [
        [
            *(str(value) for _, value in point),
            *(score_in_words(of_point, name) for name in (*metrics, "loss")),
            f"{of_point[0].trained_parameters:,}",
        ]
        for point, of_point in results.items()
    ]
    headers = [*(axis.field for axis in axes), *metrics, "loss", "trained"]
    return render_table(headers, rows, "r" * len(headers), markdown=True)
