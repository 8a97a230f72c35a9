"""Tasks x methods x seeds of one table of the paper; what ``train/glue.py`` and its like run."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import jax

from goat_jax.analysis.collect_runs import gather
from goat_jax.analysis.result_files import Key, keep_scores, kept_scores
from goat_jax.analysis.run_results import check_all_different
from goat_jax.cli.arguments.config import read_config, with_adapter
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.cli.train import draw
from goat_jax.config.run import RunConfig
from goat_jax.errors import RunFailed, UserError
from goat_jax.files import write_whole
from goat_jax.text_tables import render_table
from goat_jax.training.checkpoints.run_dir import RUN
from goat_jax.training.trainer import fit
from reproduction.figures import draw_figures
from reproduction.labels import add_arguments, options_by_part, read_label

TABLE = "table.md"
Scores = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        config: the config file, whose options have task, method, rank and seed.
        paper: method (``lora@16`` with another rank) -> task -> score in percent.
        metric: what is compared, at the last step.
        name: of the program and of the folder of runs.
    """

    config: Path
    paper: Scores
    metric: str
    name: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        task: its column.
        method: its row, as `labels.read_label` reads it.
        seed: the run's.

    >>> Cell("dtd", "lora@16", 1).options, Cell("dtd", "goat@16:rho=5", 0).name
    ('task=dtd,method=lora,rank=16,seed=1', 'dtd-goat-rank16-rho-5-seed0')
    """

    task: str
    method: str
    seed: int

    @property
    def options(self) -> str:
        """Options of the config file."""
        return f"task={self.task},{read_label(self.method).options},seed={self.seed}"

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.task}-{read_label(self.method).name}-seed{self.seed}"

    def config(
        self, file: Path, options: str = "", overrides: Sequence[str] = (), prog: str = ""
    ) -> RunConfig:
        """The run's config.

        Args:
            file: the config file, whose options have task, method, rank and seed.
            options: further options of it.
            overrides: ``--field value ...``, over the file's.
            prog: shown in usage messages.
        """
        source = f"{file}:{self.options}" + (f",{options}" if options else "")
        label = read_label(self.method)
        return with_adapter(read_config(source, overrides, prog), label.adapter)


def main(table: PaperTable, arguments: Sequence[str] | None = None) -> int:
    """Runs what is not done, then prints the table; 0, 1 if a run failed, 2 for bad input, 143 if
    it was stopped."""
    return in_one_line(table.name, lambda: _main(table, arguments))


def _main(table: PaperTable, arguments: Sequence[str] | None) -> int:
    options, overrides = _parser(table).parse_known_args(arguments)
    check_all_different("--seeds", options.seeds, at_least=0, whole=True)
    methods = list(dict.fromkeys(read_label(text).text for text in options.methods))
    of_task = options_by_part(options.options, options.tasks)
    cells = [
        Cell(task, method, seed)
        for seed in options.seeds
        for task in dict.fromkeys(options.tasks)
        for method in methods
    ]

    def config_of(cell: Cell) -> RunConfig:
        config = cell.config(table.config, of_task[cell.task], overrides, table.name)
        return dataclasses.replace(config, out=str(options.out / cell.name))

    configs, problems = all_configs(cells, config_of)
    found: dict[Cell, float] = {}
    for cell, config in configs.items():
        try:
            scores = run_cell(config, not options.quiet)
        except (UserError, RunFailed) as error:
            problems.setdefault(str(error), []).append(cell.name)
            continue
        if scores is None:
            print(f"stopped in {cell.name}; the same command continues", file=sys.stderr)
            return 143
        found[cell] = 100 * scores[table.metric]
    rendered = render(table.paper, found, options.tasks, methods)
    conclude(options.out, rendered, in_words("not trained", problems), table.metric)
    return 1 if problems else 0


class Named(Hashable, Protocol):
    """One run of a table."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        ...


Run = TypeVar("Run", bound=Named)


def all_configs(
    runs: Iterable[Run], config_of: Callable[[Run], RunConfig]
) -> tuple[dict[Run, RunConfig], dict[str, list[str]]]:
    """The configs of all runs, made before any is trained; and each error with its runs' names.

    Raises:
        UserError: no run has a config.
    """
    configs: dict[Run, RunConfig] = {}
    problems: dict[str, list[str]] = {}
    for run in runs:
        try:
            configs[run] = config_of(run)
        except UserError as error:
            problems.setdefault(str(error), []).append(run.name)
    if not configs:
        more = f" (and {len(problems) - 1} other errors)" if len(problems) > 1 else ""
        raise UserError(next(iter(problems), "no runs: name some") + more)
    return configs, problems


def in_words(what: str, problems: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each error, with all the runs that it is of.

    >>> in_words("not trained", {"no rows": ["a"], "no model": ["b", "c"]})
    ['not trained: a: no rows', 'not trained: no model (2 runs: b, c)']
    """
    return [
        f"{what}: {runs[0]}: {error}"
        if len(runs) == 1
        else f"{what}: {error} ({len(runs)} runs: {', '.join(runs)})"
        for error, runs in problems.items()
    ]


def conclude(out: Path, table: str, problems: Sequence[str], metric: str | None = None) -> None:
    """Writes and prints a table, draws the paper's figures that its runs are enough for."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TABLE, table + "\n")
    print(table)
    if any(out.rglob(RUN)):
        for path in draw_figures(gather([out]), out, metric)[0]:
            print(f"drawn: {path}")
    for problem in problems:
        print(problem, file=sys.stderr)


def _parser(table: PaperTable) -> Parser:
    parser = Parser(
        prog=table.name,
        description="Trains every task with every method; what is done is not trained again. "
        "Fields of the runs can be overridden: --model.path FOLDER, --train.steps 100, ...",
    )
    tasks = list(next(iter(table.paper.values())))
    parser.add_argument("--tasks", nargs="+", default=tasks, metavar="TASK")
    add_arguments(parser, table.paper, table.name)
    return parser


def run_cell(config: RunConfig, progress: bool) -> dict[str, float] | None:
    """The scores of one run, trained now if it is not done; None if it was stopped.

    Raises:
        UserError, RunFailed: as `goat_jax.training.trainer.fit`; a result of other settings.
    """
    folder, key = Path(config.out), Key.of(config)
    scores, _ = kept_scores(folder, key)
    if scores is not None:
        return scores
    summary = fit(config, progress=progress)
    if summary.stopped.startswith("SIG"):
        return None
    draw(summary.folder)
    keep_scores(folder, key, summary.after, step=summary.step, notes=summary.notes)
    jax.clear_caches()  # the next run has a model of its own
    return summary.after


def render(
    paper: Scores, found: Mapping[Cell, float], tasks: Sequence[str], methods: Sequence[str]
) -> str:
    """A Markdown table: ours over the seeds, in brackets the paper's and the difference.

    >>> print(render({"lora": {"rte": 84.0}}, {Cell("rte", "lora", 0): 84.5}, ["rte"], ["lora"]))
    | method | rte                  | average |
    | :----- | :------------------- | :------ |
    | lora   | 84.50 (84.00, +0.50) | -       |
    """
    rows = []
    for method in methods:
        own = [
            [score for cell, score in found.items() if (cell.task, cell.method) == (task, method)]
            for task in tasks
        ]
        published = [paper.get(method, {}).get(task) for task in tasks]
        cells = [_cell(*pair) for pair in zip(own, published, strict=True)]
        rows.append([method, *cells, _average(own, published)])
    return render_table(["method", *tasks, "average"], rows, markdown=True)


def _average(own: Sequence[Sequence[float]], published: Sequence[float | None]) -> str:
    """Of tasks that are all there; of one task it says nothing."""
    if len(own) < 2 or not all(own):
        return "-"
    means = [statistics.mean(scores) for scores in own]
    known = [score for score in published if score is not None]
    whole = statistics.mean(known) if len(known) == len(own) else None
    return _cell([statistics.mean(means)], whole)


def _cell(scores: Sequence[float], published: float | None) -> str:
    if not scores:
        return "-" if published is None else f"- ({published:.2f})"
    mean = statistics.mean(scores)
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    beside = "" if published is None else f" ({published:.2f}, {mean - published:+.2f})"
    return f"{mean:.2f}{spread}{beside}"
