"""Tables of the study, in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from goat_jax.analysis.run_results import mean_and_spread
from goat_jax.data.metrics import goodness
from goat_jax.text_tables import render_table
from goat_jax.training.vmapped_runs import RunResult
from studies.records import Records
from studies.runs import SAME_RATE, TEST, Stages
from studies.statistics import Interval, apart_from_0, gap_closed, paired, ranks, scores
from studies.tasks import BASELINE, FROZEN, FULL, ROWS, TASKS, StudyTask


def task_table(methods: Mapping[str, Stages], task: StudyTask, stage: str) -> str:
    """Returns one task's table of a stage: scores, losses, and differences to LoRA and to full."""
    of_method = {name: found for name, s in methods.items() if (found := _at(stage, s))}
    of_seeds = {name: scores(results, task.metric) for name, results in of_method.items()}
    compared = [in_words(differences(of_seeds, base)) for base in (BASELINE, FULL)]
    rows = []
    for method, results in of_method.items():
        rate, *scored = _scored(method, results, task)
        trained = _trained(method, results[0].trained_parameters)
        rows.append([method, rate, trained, *scored, *(each.get(method, "") for each in compared)])
    headers = ["method", "rate", "trained", task.metric, "loss"]
    headers += [f"minus {base}" for base in (BASELINE, FULL)]
    return render_table(headers, rows, "lrrrrrr", markdown=True)


def differences(of_seeds: Mapping[str, Mapping[int, float]], base: str) -> dict[str, Interval]:
    """Returns the differences of all methods' scores to those of one of them."""
    others = {name: found for name, found in of_seeds.items() if name != base}
    found = {name: paired(of, of_seeds.get(base, {})) for name, of in others.items()}
    return {name: difference for name, difference in found.items() if difference is not None}


def _trained(method: str, count: int) -> str:
    """Formats the number of trained parameters; the frozen base has adapters without effect."""
    return "head" if method == FROZEN and count else f"{count:,}"


def _rate(rate: float, tried: Sequence[float]) -> str:
    """Formats a learning rate, with a star at the ends of the grid, beyond which may be better.

    >>> _rate(1e-3, (1e-4, 1e-3, 1e-2)), _rate(1e-2, (1e-4, 1e-3, 1e-2))
    ('0.001', '0.01*')
    """
    return f"{rate:g}" + ("*" if rate in (tried[0], tried[-1]) else "")


def _at(stage: str, stages: Stages) -> Sequence[RunResult]:
    """Returns a stage's results. A method has none of its own at equal parameters if it has no
    rank or needs no other."""
    return stages.get(stage) or stages.get(TEST, ())


def in_words(found: Mapping[str, Interval]) -> dict[str, str]:
    """Formats means with their intervals, in bold if `apart_from_0`.

    >>> in_words({"a": Interval(0.02, 0.01, 0.004), "b": Interval(-0.02, 0.03, 0.2)})
    {'a': '**+0.0200 ± 0.0100**', 'b': '-0.0200 ± 0.0300'}
    """
    texts = {name: f"{each.mean:+.4f} ± {each.half:.4f}" for name, each in found.items()}
    bold = apart_from_0(found)
    return {name: f"**{text}**" if name in bold else text for name, text in texts.items()}


def effects_table(methods: Mapping[str, Stages], task: StudyTask) -> str:
    """Returns one task's table of methods with one option changed, below the method unchanged.

    A difference to it is given for runs with a learning rate of their own, and with its own.
    """
    rows = []
    for method, changed in _changed(methods).items():
        base = methods[method].get(TEST, ())
        own = {label: methods[label].get(TEST, ()) for label in changed}
        same = {
            label: runs if _rates(runs) == _rates(base) else methods[label].get(SAME_RATE, ())
            for label, runs in own.items()
        }
        rate, score, loss = _scored(method, base, task)
        rows.append([method, rate, score, "", "", loss, ""])
        at_own, at_same = (_beside(runs, base, task.metric) for runs in (own, same))
        of_loss = _beside(own, base, "loss")
        for label, runs in own.items():
            rate, score, loss = _scored(label, runs, task)
            rows.append([label, rate, score, at_own[label], at_same[label], loss, of_loss[label]])
    headers = ["method", "rate", task.metric, "minus unchanged", "the same at its rate"]
    return render_table([*headers, "loss", "minus unchanged"], rows, "lrrrrrr", markdown=True)


def _changed(methods: Mapping[str, Stages]) -> dict[str, list[str]]:
    """Returns the labels with changed options, by the method that they change."""
    found: dict[str, list[str]] = {}
    for label, row in ROWS.items():
        if row.options and label not in (FROZEN, row.method) and {label, row.method} <= {*methods}:
            found.setdefault(row.method, []).append(label)
    return found


def _rates(results: Sequence[RunResult]) -> set[float]:
    return {result.variant.learning_rate for result in results}


def _beside(
    runs: Mapping[str, Sequence[RunResult]], base: Sequence[RunResult], metric: str
) -> dict[str, str]:
    """Returns a cell for each label with its difference to `base`; empty without runs."""
    of_base = scores(base, metric)
    found = {label: paired(scores(results, metric), of_base) for label, results in runs.items()}
    cells = in_words({label: each for label, each in found.items() if each is not None})
    return {label: cells.get(label, "diverged" if runs[label] else "") for label in runs}


def _scored(method: str, results: Sequence[RunResult], task: StudyTask) -> list[str]:
    """Returns the cells of learning rate, score and loss; empty without results."""
    if not results:
        return ["", "", ""]
    found = scores(results, task.metric)
    rate = _rate(results[0].variant.learning_rate, task.rates_of(method))
    if not found:
        return [rate, "diverged", ""]
    loss = statistics.fmean(scores(results, "loss").values())
    return [rate, mean_and_spread(list(found.values())), f"{loss:.4f}"]


def summary(records: Records) -> str:
    """Returns a table over tasks: ranks, gap closed, and tasks above and below LoRA.

    A task counts if it has all methods that most tasks have, so that ranks are among as many.
    """
    records = _with_most(records)
    means = {task: _means(methods, TASKS[task].metric) for task, methods in records.items()}
    places = {
        task: ranks(_adapters(of_task), TASKS[task].metric) for task, of_task in means.items()
    }
    signs = {task: _signs(methods, TASKS[task].metric) for task, methods in records.items()}
    rows = []
    for method in dict.fromkeys(name for of_task in means.values() for name in of_task):
        own = [of_task[method] for of_task in places.values() if method in of_task]
        closed = _gaps(method, means).values()
        of_tasks = [of_task.get(method) for of_task in signs.values()]
        rows.append(
            [
                method,
                len([task for task in means.values() if method in task]),
                f"{statistics.fmean(own):.1f}" if own else "",
                f"{statistics.fmean(closed):.0%}" if closed else "",
                of_tasks.count(True),
                of_tasks.count(False),
            ]
        )
    headers = ["method", "tasks", "mean rank", "gap closed", "above lora", "below lora"]
    return render_table(headers, rows, "lrrrrr", markdown=True)


def _with_most(records: Records) -> Records:
    """Returns the tasks that have all methods which more than half of the tasks have."""
    tasks_of = Counter(method for of_task in records.values() for method in of_task)
    most = {method for method, count in tasks_of.items() if 2 * count > len(records)}
    return {task: of_task for task, of_task in records.items() if most <= of_task.keys()}


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


def _signs(methods: Mapping[str, Stages], metric: str) -> dict[str, bool]:
    """Returns whether a method is above LoRA, for those that differ from it (`apart_from_0`)."""
    good = {
        name: {s: goodness(metric, score) for s, score in scores(at_test, metric).items()}
        for name, stages in methods.items()
        if (at_test := stages.get(TEST))
    }
    found = differences(good, BASELINE)
    return {name: found[name].mean > 0 for name in apart_from_0(found)}
