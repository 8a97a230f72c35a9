"""``goat-jax compare``: trains several methods on one task with several seeds, for one table and
one figure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from goat_jax.analysis.run_results import (
    Runs,
    check_all_different,
    complete_runs,
    file_name,
    finite,
    score_in_words,
    standing,
)
from goat_jax.cli.arguments.config import read_config, with_adapter
from goat_jax.config.files import parse_options
from goat_jax.config.run import AdapterConfig, RunConfig
from goat_jax.errors import RunFailed, UserError
from goat_jax.extras import skipped_without_extra
from goat_jax.files import write_whole
from goat_jax.plots.compare import plot_comparison
from goat_jax.text_tables import render_table
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.vmapped_runs import RunResult, RunVariant, check_runs
from goat_jax.validation.checks import check_choice, check_number

TABLE, FIGURE = "comparison.md", "comparison.png"


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One method of a comparison, given as ``METHOD`` or ``METHOD:option=value,...``.

    Attributes:
        label: the text as it was given; it names the method in the table and in file names.
        method: the method's name.
        options: fields of the adapter and options of its parts, by name.
    """

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
    runs_per_step: int,
    out: Path,
    say: Callable[[str], None] = print,
) -> int:
    """Trains every method from one config; writes a table, a figure and every run's numbers.

    Runs that an earlier call with the same settings has finished are not trained again.

    Args:
        source: a config file whose ``get_config`` takes ``method``.
        methods: the methods, in the form that `read_entries` reads.
        seeds: the seeds that each method is trained with.
        rates: the peak learning rates that each method is trained with; empty for the config's.
        overrides: ``--field value ...``, which override the config file.
        equal: "rank" to use the config's total rank for all methods, or "parameters" to choose
            ranks whose adapters are as close as possible to the first method's in size.
        runs_per_step: the number of runs trained in one vmapped step.
        out: the folder for the results.
        say: prints one message.

    Returns:
        The exit code.

    Raises:
        UserError: an invalid argument or config, before any run is trained.
        RunFailed: all runs diverged; the table and the numbers have been written.
    """
    check_choice("--equal", equal, ("rank", "parameters"))
    check_number("--runs-per-step", runs_per_step, at_least=1, whole=True)
    check_all_different("--seeds", seeds, at_least=0, whole=True)
    check_all_different("--rates", rates, above=0)
    entries = read_entries(methods)
    configs = [entry_config(source, entry, overrides) for entry in entries]
    check_all_methods_differ(entries, configs)
    if equal == "parameters":
        configs = [with_parameters_of(config, configs[0]) for config in configs]
    runs_by_entry = [
        Runs(config, _variants(config, seeds, rates), out / f"{file_name(entry.label)}.json")
        for entry, config in zip(entries, configs, strict=True)
    ]
    # Every error, such as a result file of other settings, is found before any run is trained.
    check_runs([runs.config for runs in runs_by_entry if runs.missing()])
    results: dict[str, list[RunResult]] = {}
    for entry, runs in zip(
        entries, runs_by_entry, strict=True
    ):  # `runs_per_step` counts one method's runs
        ((_, results[entry.label]),) = complete_runs([runs], runs_per_step)
        say(f"{entry.label}: {len(runs.variants)} runs")
    metrics = configs[0].task.metrics
    table = comparison_table(results, metrics)
    write_whole(out / TABLE, table + "\n")
    losses = {
        label: [result.losses for result in best_rate(of_label, metrics[0])]
        for label, of_label in results.items()
    }
    title = f"{configs[0].task.name}: training loss"
    with skipped_without_extra(FIGURE):
        plot_comparison(losses, out / FIGURE, title=title, steps=configs[0].train.steps)
    written = ", ".join(name for name in (TABLE, FIGURE) if (out / name).exists())
    say(f"\n{table}\n\n{written} and every run's figures are in {out}")
    if not any(finite(of_label) for of_label in results.values()):
        raise RunFailed("all runs diverged: lower the learning rate or check the data")
    return 0


def _variants(config: RunConfig, seeds: Sequence[int], rates: Sequence[float]) -> list[RunVariant]:
    own_rates = rates or [config.optimizer.learning_rate]
    return [RunVariant(seed, rate) for rate in own_rates for seed in seeds]


def read_entries(methods: Sequence[str]) -> list[MethodRow]:
    """Reads methods of a command line: ``goat,lora`` and ``"adalora:total_rank=12,target_rank=8"``.

    >>> [entry.label for entry in read_entries(["goat,lora", "goat:rho=5"])]
    ['goat', 'lora', 'goat:rho=5']
    """
    entries = []
    for word in methods:
        for text in [word] if ":" in word else word.split(","):
            method, _, rest = text.strip().partition(":")
            label = f"{method}:{rest}" if rest else method
            entries.append(MethodRow(label, method, parse_options(rest)))
    return entries


def check_all_methods_differ(entries: Sequence[MethodRow], configs: Sequence[RunConfig]) -> None:
    """Raises `UserError` if two entries would train the same adapter, however they are spelled."""
    known: list[tuple] = []
    for entry, config in zip(entries, configs, strict=True):
        traits = _traits(config.adapter)
        if traits in known:
            first = entries[known.index(traits)].label
            twice = repr(first) if first == entry.label else f"{first!r} and {entry.label!r}"
            raise UserError(f"--methods has {twice} twice: give each method once")
        known.append(traits)


def _traits(adapter: AdapterConfig) -> tuple:
    """Returns the adapter's resolved settings, which do not depend on how they were spelled."""
    where = (
        adapter.target_modules,
        adapter.modules_to_save,
        adapter.forward_scale,
        adapter.overrides,
    )
    return adapter.method, adapter.spec(), where


def entry_config(
    source: str, entry: MethodRow, overrides: Sequence[str] = (), verb: str = "goat-jax compare"
) -> RunConfig:
    """Returns the config of an entry: its options override the file's values for the method.

    Args:
        source: a config file whose ``get_config`` takes ``method``.
        entry: the method and its options.
        overrides: ``--field value ...``, which override the config file.
        verb: the command, for its help.
    """
    of_method = f"{source}{',' if ':' in source else ':'}method={entry.method}"
    return with_adapter(read_config(of_method, overrides, verb), entry.options)


def with_parameters_of(config: RunConfig, model: RunConfig) -> RunConfig:
    """Returns `config` at the total rank whose adapters are closest in size to those of `model`.

    The size of adapters is affine in the rank, so the sizes at two ranks determine it at all. A
    method without a rank is returned unchanged.
    """
    target = _adapter_size(model)
    experts = config.adapter.spec().num_experts
    one, two = (_adapter_size(_with_rank(config, rank * experts)) for rank in (1, 2))
    if one == two:  # a method without a rank
        return config
    best = max(1, round(1 + (target - one) / (two - one)))
    return _with_rank(config, best * experts)


def _with_rank(config: RunConfig, total_rank: int) -> RunConfig:
    adapter = dataclasses.replace(config.adapter, total_rank=total_rank)
    return dataclasses.replace(config, adapter=adapter)


def _adapter_size(config: RunConfig) -> int:
    return abstract_run(config).inject_report.adapter_parameters


def best_rate(results: Sequence[RunResult], metric: str) -> list[RunResult]:
    """Returns the results at the learning rate with the best mean score."""
    by_rate: dict[float, list[RunResult]] = {}
    for result in results:
        by_rate.setdefault(result.variant.learning_rate, []).append(result)
    return max(by_rate.values(), key=lambda group: standing(group, metric))


def comparison_table(results: dict[str, list[RunResult]], metrics: Sequence[str]) -> str:
    """Returns a Markdown table: for each method and learning rate the mean and spread of its
    scores, its parameters, and the time and memory of a step.

    Args:
        results: label of a method -> the results of its runs.
        metrics: names of the task's metrics, each a column.
    """
    rows = []
    for label, of_label in results.items():
        rates = dict.fromkeys(result.variant.learning_rate for result in of_label)
        for rate in rates:
            group = [o for o in of_label if o.variant.learning_rate == rate]
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
