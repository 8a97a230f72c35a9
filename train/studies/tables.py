"""Tables of the study, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from goat_jax.analysis.run_results import mean_and_spread
from goat_jax.data.metrics import goodness
from goat_jax.text_tables import render_table
from goat_jax.training.vmapped_runs import RunResult
from studies.records import Records
from studies.runs import SAME_RATE, TEST, Stages
from studies.statistics import Interval, gap_closed, interval, paired, ranks, scores
from studies.tasks import BASELINE, FROZEN, FULL, RATES, ROWS, TASKS


def task_table(methods: Mapping[str, Stages], metric: str, stage: str) -> str:
    """Returns one task's table of a stage: scores, losses, and differences to LoRA and to full."""
    of_method = {name: found for name, s in methods.items() if (found := _at(stage, s))}
    base, full = (scores(of_method.get(name, ()), metric) for name in (BASELINE, FULL))
    rows = []
    for method, results in of_method.items():
        rate, *scored = _scored(results, metric)
        trained = _trained(method, results[0].trained_parameters)
        differences = [_difference(scores(results, metric), other) for other in (base, full)]
        rows.append([method, rate, trained, *scored, *differences])
    headers = ["method", "rate", "trained", metric, "loss", f"minus {BASELINE}", f"minus {FULL}"]
    return render_table(headers, rows, "lrrrrrr", markdown=True)


def _trained(method: str, count: int) -> str:
    """Formats the number of trained parameters; the frozen base has adapters without effect."""
    return "head" if method == FROZEN and count else f"{count:,}"


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


def effects_table(methods: Mapping[str, Stages], metric: str) -> str:
    """Returns one task's table of methods with one option changed, below the method as it is.

    A difference to it is given for runs with a learning rate of their own, and with its own.
    """
    rows = []
    for method, changed in _changed(methods).items():
        base = methods[method].get(TEST, ())
        rate, score, loss = _scored(base, metric)
        rows.append([method, rate, score, "", "", loss, ""])
        for label in changed:
            own = methods[label].get(TEST, ())
            same = own if _rates(own) == _rates(base) else methods[label].get(SAME_RATE, ())
            rate, score, loss = _scored(own, metric)
            differences = [_beside(each, base, metric) for each in (own, same)]
            rows.append([label, rate, score, *differences, loss, _beside(own, base, "loss")])
    headers = ["method", "rate", metric, "minus as it is", "at its rate", "loss", "minus as it is"]
    return render_table(headers, rows, "lrrrrrr", markdown=True)


def _changed(methods: Mapping[str, Stages]) -> dict[str, list[str]]:
    """Returns the labels with changed options, by the method that they change."""
    found: dict[str, list[str]] = {}
    for label, row in ROWS.items():
        if row.options and label not in (FROZEN, row.method) and {label, row.method} <= {*methods}:
            found.setdefault(row.method, []).append(label)
    return found


def _rates(results: Sequence[RunResult]) -> set[float]:
    return {result.variant.learning_rate for result in results}


def _beside(results: Sequence[RunResult], others: Sequence[RunResult], metric: str) -> str:
    found = scores(results, metric)
    return _difference(found, scores(others, metric)) if found or not results else "diverged"


def _scored(results: Sequence[RunResult], metric: str) -> list[str]:
    """Returns the cells of learning rate, score and loss; empty without results."""
    if not results:
        return ["", "", ""]
    found, rate = scores(results, metric), _rate(results[0].variant.learning_rate)
    if not found:
        return [rate, "diverged", ""]
    loss = statistics.fmean(scores(results, "loss").values())
    return [rate, mean_and_spread(list(found.values())), f"{loss:.4f}"]


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
