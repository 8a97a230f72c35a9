"""Trains all tasks, methods and seeds of a table of the paper, for ``train/glue.py`` and
``train/vision.py``."""

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
from goat_jax.cli.verbs.train import draw
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
    """Table of the paper and the config file of its runs.

    Attributes:
        config: the config file; its options include task, method, rank and seed.
        paper: method (``lora@16`` for another rank) -> task -> published score in percent.
        metric: the metric that is compared, at the last step.
        name: the name of the program and of the folder of its runs.
    """

    config: Path
    paper: Scores
    metric: str
    name: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        task: the task, which is the table's column.
        method: the method, in the form that `labels.read_label` reads; it names the table's row.
        seed: the run's seed.

    >>> Cell("dtd", "lora@16", 1).options, Cell("dtd", "goat@16:rho=5", 0).name
    ('task=dtd,method=lora,rank=16,seed=1', 'dtd-goat-rank16-rho-5-seed0')
    """

    task: str
    method: str
    seed: int

    @property
    def options(self) -> str:
        """Options of the config file for this run."""
        return f"task={self.task},{read_label(self.method).options},seed={self.seed}"

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.task}-{read_label(self.method).name}-seed{self.seed}"

    def config(
        self, file: Path, options: str = "", overrides: Sequence[str] = (), prog: str = ""
    ) -> RunConfig:
        """Returns the run's config.

        Args:
            file: the config file; its options include task, method, rank and seed.
            options: further options of the config file.
            overrides: ``--field value ...``, which override the config file.
            prog: the program, for its help.
        """
        source = f"{file}:{self.options}" + (f",{options}" if options else "")
        label = read_label(self.method)
        return with_adapter(read_config(source, overrides, prog), label.adapter)


def main(table: PaperTable, arguments: Sequence[str] | None = None) -> int:
    """Makes the runs that are not finished, then prints the table.

    Args:
        table: the table.
        arguments: the words of the command line; None for those of the process.

    Returns:
        The exit code: 0, 1 if a run failed, 2 for bad input, 143 if the program was stopped.
    """
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
    """One run of a table, with a folder name."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        ...


Run = TypeVar("Run", bound=Named)


def all_configs(
    runs: Iterable[Run], config_of: Callable[[Run], RunConfig]
) -> tuple[dict[Run, RunConfig], dict[str, list[str]]]:
    """Makes the configs of all runs, so that errors are found before any run is trained.

    Args:
        runs: the runs of a table.
        config_of: returns the config of a run; raises `UserError` if it has none.

    Returns:
        The configs by run, and the names of the runs without one by error message.

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
        raise UserError(next(iter(problems), "no run is named") + more)
    return configs, problems


def in_words(what: str, problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each error, with the names of all runs that have it.

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
    """Writes and prints a table, and draws the paper's figures for which its runs are sufficient.

    Args:
        out: the folder of the table's runs.
        table: the table, as Markdown.
        problems: the lines to print about runs without a score.
        metric: the score that the figures show; None for each run's.
    """
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
        description="Trains every task with every method and skips what is done. "
        "Fields of the runs can be overridden: --model.path FOLDER, --train.steps 100, ...",
    )
    tasks = list(next(iter(table.paper.values())))
    parser.add_argument("--tasks", nargs="+", default=tasks, metavar="TASK")
    add_arguments(parser, table.paper, table.name)
    return parser


def run_cell(config: RunConfig, progress: bool) -> dict[str, float] | None:
    """Returns the scores of one run, which is trained now unless it is finished.

    Args:
        config: the run's config.
        progress: whether to draw a progress bar.

    Returns:
        The scores, or None if the run was stopped.

    Raises:
        UserError: an error of `goat_jax.training.trainer.fit`, or a kept result of other settings.
        RunFailed: a run that failed in `goat_jax.training.trainer.fit`.
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
    jax.clear_caches()  # the next run compiles other programs; these only take memory
    return summary.after


def render(
    paper: Scores, found: Mapping[Cell, float], tasks: Sequence[str], methods: Sequence[str]
) -> str:
    """Returns a Markdown table: mean and spread of our scores over the seeds, and in brackets the
    published score and the difference.

    Args:
        paper: method -> task -> published score.
        found: run -> score.
        tasks: the columns.
        methods: the rows.

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
    """Returns the cell with the average over tasks, or a dash if there are fewer than two tasks or
    one of them lacks a score."""
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
