"""``goat-jax compare``: several methods on one task, with several seeds: a table and a figure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from goat_jax.analysis.run_results import (
    Runs,
    check_all_different,
    file_name,
    finite,
    outcomes,
    score_in_words,
    standing,
)
from goat_jax.cli.arguments.config import read_config, with_adapter
from goat_jax.config.run import AdapterConfig, RunConfig, parse_options
from goat_jax.errors import RunFailed, UserError
from goat_jax.files import write_whole
from goat_jax.plots.compare import plot_comparison
from goat_jax.text_tables import render_table
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.vmapped_runs import Member, Outcome, check_runs
from goat_jax.validation.checks import check_choice, check_number

TABLE, FIGURE = "comparison.md", "comparison.png"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a comparison: ``METHOD`` or ``METHOD:option=value,...``."""

    label: str
    method: str
    options: dict[str, Any]


def compare(
    source: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    rates: Sequence[float],
    overrides: Sequence[str] = (),
    *,
    equal: str,
    at_once: int,
    out: Path,
    say: Callable[[str], None] = print,
) -> int:
    """Trains every method from one config; writes a table, a figure and every run's numbers.

    What an earlier call with the same settings has finished is not trained again.

    Args:
        source: a config file whose ``get_config`` takes ``method``.
        methods: as `read_entries` reads them.
        seeds: of the members of each method.
        rates: their peak learning rates; none for the config's own.
        overrides: ``--field value ...``, over the config file's.
        equal: "rank" (the config's) or "parameters" (as near to the first method's as ranks go).
        at_once: members trained in one step.
        out: folder of the results.

    Raises:
        UserError: anything that does not fit, before any run is trained.
        RunFailed: all runs diverged; the table and the numbers are written.
    """
    check_choice("--equal", equal, ("rank", "parameters"))
    check_number("--at-once", at_once, at_least=1, whole=True)
    check_all_different("--seeds", seeds, at_least=0, whole=True)
    check_all_different("--rates", rates, above=0)
    entries = read_entries(methods)
    configs = [entry_config(source, entry, overrides) for entry in entries]
    check_all_methods_differ(entries, configs)
    if equal == "parameters":
        configs = [with_parameters_of(config, configs[0]) for config in configs]
    wanted = [
        Runs(config, _members(config, seeds, rates), out / f"{file_name(entry.label)}.json")
        for entry, config in zip(entries, configs, strict=True)
    ]
    # What does not fit, a file of other settings included, is found before any run is trained.
    check_runs([runs.config for runs in wanted if runs.missing()])
    found: dict[str, list[Outcome]] = {}
    for entry, runs in zip(entries, wanted, strict=True):  # one method's runs in a step, no more
        ((_, found[entry.label]),) = outcomes([runs], at_once)
        say(f"{entry.label}: {len(runs.members)} runs")
    metrics = configs[0].task.metrics
    table = comparison_table(found, metrics)
    write_whole(out / TABLE, table + "\n")
    losses = {
        label: [outcome.losses for outcome in best_rate(of_label, metrics[0])]
        for label, of_label in found.items()
    }
    title = f"{configs[0].task.name}: training loss"
    plot_comparison(losses, out / FIGURE, title=title, steps=configs[0].train.steps)
    say(f"\n{table}\n\n{TABLE}, {FIGURE} and every run's numbers are in {out}")
    if not any(finite(of_label) for of_label in found.values()):
        raise RunFailed("all runs diverged: lower the learning rate or check the data")
    return 0


def _members(config: RunConfig, seeds: Sequence[int], rates: Sequence[float]) -> list[Member]:
    own_rates = rates or [config.optimizer.learning_rate]
    return [Member(seed, rate) for rate in own_rates for seed in seeds]


def read_entries(methods: Sequence[str]) -> list[Entry]:
    """Methods of a command line: ``goat,lora`` and ``"adalora:total_rank=12,target_rank=8"``.

    >>> [entry.label for entry in read_entries(["goat,lora", "goat:rho=5"])]
    ['goat', 'lora', 'goat:rho=5']
    """
    entries = []
    for word in methods:
        for text in [word] if ":" in word else word.split(","):
            method, _, rest = text.strip().partition(":")
            label = f"{method}:{rest}" if rest else method
            entries.append(Entry(label, method, parse_options(rest)))
    return entries


def check_all_methods_differ(entries: Sequence[Entry], configs: Sequence[RunConfig]) -> None:
    """Refuses two entries that would train the same, however they are spelt."""
    known: list[tuple] = []
    for entry, config in zip(entries, configs, strict=True):
        traits = _traits(config.adapter)
        if traits in known:
            first = entries[known.index(traits)].label
            twice = repr(first) if first == entry.label else f"{first!r} and {entry.label!r}"
            raise UserError(f"--methods names one method twice ({twice}): leave one of them out")
        known.append(traits)


def _traits(adapter: AdapterConfig) -> tuple:
    """The adapter's settings as they are resolved, not as they are spelt."""
    where = (adapter.targets, adapter.train, adapter.forward_scale, adapter.overrides)
    return adapter.method, adapter.spec(), where


def entry_config(
    source: str, entry: Entry, overrides: Sequence[str] = (), verb: str = "goat-jax compare"
) -> RunConfig:
    """The config of an entry: its own options over what the file says for the method."""
    of_method = f"{source}{',' if ':' in source else ':'}method={entry.method}"
    return with_adapter(read_config(of_method, overrides, verb), entry.options)


def with_parameters_of(config: RunConfig, model: RunConfig) -> RunConfig:
    """The config at the total rank whose adapters are nearest in size to those of another.

    Sizes are affine in the rank, so two of them tell all.
    """
    wanted = _adapter_size(model)
    experts = config.adapter.spec().num_experts
    one, two = (_adapter_size(_with_rank(config, rank * experts)) for rank in (1, 2))
    if one == two:  # a method without a rank
        return config
    best = max(1, round(1 + (wanted - one) / (two - one)))
    return _with_rank(config, best * experts)


def _with_rank(config: RunConfig, total_rank: int) -> RunConfig:
    adapter = dataclasses.replace(config.adapter, total_rank=total_rank)
    return dataclasses.replace(config, adapter=adapter)


def _adapter_size(config: RunConfig) -> int:
    return abstract_run(config).inject_report.adapter_parameters


def best_rate(found: Sequence[Outcome], metric: str) -> list[Outcome]:
    """The outcomes at the learning rate whose mean score is best."""
    by_rate: dict[float, list[Outcome]] = {}
    for outcome in found:
        by_rate.setdefault(outcome.member.learning_rate, []).append(outcome)
    return max(by_rate.values(), key=lambda group: standing(group, metric))


def comparison_table(found: dict[str, list[Outcome]], metrics: Sequence[str]) -> str:
    """Markdown: per method and learning rate the mean and spread of scores, and what it costs."""
    rows = []
    for label, of_label in found.items():
        rates = dict.fromkeys(outcome.member.learning_rate for outcome in of_label)
        for rate in rates:
            group = [o for o in of_label if o.member.learning_rate == rate]
            first = group[0]
            rows.append(
                [
                    label,
                    f"{rate:g}",
                    len(group),
                    f"{first.trained_parameters:,}",
                    f"{first.adapter_share:.2%}",
                    *(score_in_words(group, name) for name in (*metrics, "loss")),
                    f"{statistics.median(o.step_seconds for o in group):.2f}",
                    f"{max(o.temporary_bytes for o in group) / 2**20:,.0f}",
                ]
            )
    headers = ["method", "rate", "seeds", "trained", "adapters", *metrics, "loss"]
    headers += ["s/step", "step's MiB"]
    return render_table(headers, rows, "l" + "r" * (len(headers) - 1), markdown=True)
