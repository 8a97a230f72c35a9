"""``goat-jax compare``: several methods on one task, with several seeds: a table and a figure."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.commands.configs import read_config, with_adapter
from goat_jax.config import RunConfig, flatten, parse_options
from goat_jax.data.metrics import goodness
from goat_jax.errors import UserError
from goat_jax.plots.compare import plot_comparison
from goat_jax.run.folder import write_aside
from goat_jax.run.shapes import abstract_run
from goat_jax.run.together import Member, Outcome, train_together, with_member
from goat_jax.tables import render_table

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
    """
    entries = read_entries(methods)
    configs = [entry_config(source, entry, overrides) for entry in entries]
    if equal == "parameters":
        configs = [with_parameters_of(config, configs[0]) for config in configs]
    found: dict[str, list[Outcome]] = {}
    for entry, config in zip(entries, configs, strict=True):
        own_rates = rates or [config.optimizer.learning_rate]
        members = [Member(seed, rate) for rate in own_rates for seed in seeds]
        runs = Runs(config, members, out / f"{file_name(entry.label)}.json")
        ((_, found[entry.label]),) = outcomes([runs], at_once)
        say(f"{entry.label}: {len(members)} runs")
    metrics = configs[0].task.metrics
    table = comparison_table(found, metrics)
    write_aside(out / TABLE, table + "\n")
    losses = {
        label: [outcome.losses for outcome in best_rate(of_label, metrics[0])]
        for label, of_label in found.items()
    }
    plot_comparison(losses, out / FIGURE, title=f"{configs[0].task.name}: training loss")
    say(f"\n{table}\n\n{TABLE}, {FIGURE} and every run's numbers are in {out}")
    return 0


def read_entries(methods: Sequence[str]) -> list[Entry]:
    """Methods of a command line: ``goat,lora`` and ``"adalora:total_rank=12,target_rank=8"``.

    >>> [entry.label for entry in read_entries(["goat,lora", "goat:rho=5"])]
    ['goat', 'lora', 'goat:rho=5']
    """
    entries = []
    for word in methods:
        for label in [word] if ":" in word else word.split(","):
            method, _, rest = label.partition(":")
            entries.append(Entry(label, method, parse_options(rest)))
    labels = [entry.label for entry in entries]
    if len(set(labels)) < len(labels):
        raise UserError(f"a method is named twice: {', '.join(labels)}")
    return entries


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


@dataclasses.dataclass(frozen=True)
class Runs:
    """A config at several seeds and learning rates, and the file that keeps their outcomes."""

    config: RunConfig
    members: Sequence[Member]
    path: Path

    def settings(self) -> dict[str, Any]:
        """What all of them share."""
        return {name: value for name, value in flatten(self.config).items() if name != "out"}

    def kept(self) -> dict[Member, Outcome]:
        """The outcomes that the file has.

        Raises:
            UserError: it is of other settings.
        """
        if not self.path.is_file():
            return {}
        saved, settings = json.loads(self.path.read_text(encoding="utf-8")), self.settings()
        if saved["config"] != settings:
            names = [n for n, v in settings.items() if saved["config"].get(n) != v]
            raise UserError(
                f"{self.path} holds runs of another config ({', '.join(names[:3])}): give another "
                "--out"
            )
        found = [Outcome(**{**run, "member": Member(**run["member"])}) for run in saved["runs"]]
        return {outcome.member: outcome for outcome in found}

    def keep(self, found: Mapping[Member, Outcome]) -> None:
        """Writes the file."""
        runs = [dataclasses.asdict(each) for each in found.values()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(self.path, json.dumps({"config": self.settings(), "runs": runs}) + "\n")


def outcomes(wanted: Sequence[Runs], at_once: int) -> Iterator[tuple[Runs, list[Outcome]]]:
    """Trains what the files do not have yet, and gives every entry as soon as it is complete."""
    kept = [
        runs.kept() for runs in wanted
    ]  # before any is trained: a file may be of other settings
    missing = [
        (number, member)
        for number, runs in enumerate(wanted)
        for member in runs.members
        if member not in kept[number]
    ]
    configs = [with_member(wanted[number].config, member) for number, member in missing]
    trained = zip(missing, train_together(configs, at_once), strict=True)
    for number, runs in enumerate(wanted):
        while not kept[number].keys() >= set(runs.members):
            (own, member), outcome = next(trained)
            kept[own][member] = outcome
            wanted[own].keep(kept[own])
        yield runs, [kept[number][member] for member in runs.members]


def best_rate(found: Sequence[Outcome], metric: str) -> list[Outcome]:
    """The outcomes at the learning rate whose mean score is best."""
    by_rate: dict[float, list[Outcome]] = {}
    for outcome in found:
        by_rate.setdefault(outcome.member.learning_rate, []).append(outcome)
    return max(
        by_rate.values(),
        key=lambda group: statistics.fmean(goodness(metric, o.after[metric]) for o in group),
    )


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
                    *(mean_and_spread([o.after[name] for o in group]) for name in metrics),
                    mean_and_spread([o.after["loss"] for o in group]),
                    f"{statistics.median(o.step_seconds for o in group):.2f}",
                    f"{max(o.temporary_bytes for o in group) / 2**20:,.0f}",
                ]
            )
    headers = ["method", "rate", "seeds", "trained", "adapters", *metrics, "loss"]
    headers += ["s/step", "step's MiB"]
    return render_table(headers, rows, "l" + "r" * (len(headers) - 1), markdown=True)


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of the sample if there is more than one.

    >>> mean_and_spread([0.5, 0.7])
    '0.6000 ± 0.1414'
    """
    mean = statistics.fmean(values)
    return f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def file_name(label: str) -> str:
    """A label as part of a file's name."""
    return "".join(c if c.isalnum() or c in "_-." else "-" for c in label)
