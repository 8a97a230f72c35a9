"""Makes the runs of a table, an ablation or a figure of the paper, for ``train/paper.py``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from goat_jax.analysis.collect_runs import gather
from goat_jax.analysis.run_results import check_all_different
from goat_jax.cli.arguments.config import override, with_adapter
from goat_jax.cli.arguments.evaluation import add_options, options_of, sampling_given
from goat_jax.cli.entry import Parser
from goat_jax.config.files import load_config
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.evaluation import CODE, EvalTask
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.code import check_programs
from goat_jax.evaluation.types import EvalOptions
from goat_jax.files import write_whole
from goat_jax.training.checkpoints.run_dir import RUN
from reproduction import measures
from reproduction.experiments import EXPERIMENTS, TASKS, Experiment
from reproduction.figures import draw_figures
from reproduction.labels import options_by_part, read_label
from reproduction.released import as_released, released_evaluation
from reproduction.table import Found, render

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROG = "paper"
AS_PRINTED, AS_RELEASED = "printed", "released"


@dataclasses.dataclass(frozen=True)
class PaperRun:
    """One run of an experiment.

    Attributes:
        task: a key of `TASKS`.
        method: the row, as `labels.read_label` reads it.
        seed: the run's seed.

    >>> PaperRun("dtd", "lora@16", 1).source, PaperRun("dtd", "goat@16:rho=5", 0).name
    ('vision.py:task=dtd,method=lora,rank=16,seed=1', 'dtd-goat-rank16-rho-5-seed0')
    """

    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.task}-{read_label(self.method).name}-seed{self.seed}"

    @property
    def source(self) -> str:
        """Config file of this run, with its options."""
        task, row = TASKS[self.task], read_label(self.method).options
        options = ",".join(filter(None, (task.options, row, f"seed={self.seed}")))
        return f"{task.config}.py:{options}"

    def config(
        self, options: str = "", overrides: Sequence[str] = (), released: bool = False
    ) -> RunConfig:
        """Returns the run's config.

        Args:
            options: further options of the config file.
            overrides: ``--field value ...``, which override the config file.
            released: whether to run what the published code runs.
        """
        source = f"{CONFIGS / self.source}" + (f",{options}" if options else "")
        config = load_config(source)
        if released:
            config = as_released(TASKS[self.task].config, config)
        return with_adapter(override(config, overrides, PROG), read_label(self.method).adapter)


def run_experiment(name: str, arguments: Sequence[str]) -> int:
    """Makes the runs that are not finished, then prints the table and draws the figures.

    Args:
        name: a key of `EXPERIMENTS`.
        arguments: the words of the command line after the name.

    Returns:
        The exit code: 0, 1 if a run failed, 143 if the program was stopped.

    Raises:
        UserError: bad input that concerns every run.
    """
    experiment = EXPERIMENTS[name]
    given, overrides = _parser(name, experiment).parse_known_args(arguments)
    check_all_different("--seeds", given.seeds, at_least=0, whole=True)
    released, options = given.variant == AS_RELEASED, options_of(given)
    tasks = list(dict.fromkeys(given.tasks))
    methods = list(dict.fromkeys(read_label(text).text for text in given.methods))
    of_task = options_by_part(given.options, {task: TASKS[task].config for task in tasks})
    runs = [PaperRun(*each) for each in _product(tasks, methods, given.seeds)]
    evaluation = {task: options for task in tasks}
    if released:
        evaluation = {task: _released(task, options, given) for task in tasks}

    def checked(run: PaperRun) -> RunConfig:
        config = run.config(of_task[run.task], overrides, released)
        check_eval(config, options)
        return dataclasses.replace(config, out=str(given.out / run.name))

    configs, problems = _all_configs(runs, checked)
    found: dict[str, dict[str, list[float]]] = {}
    for run, config in configs.items():
        task = TASKS[run.task]
        try:
            measure = getattr(measures, task.measure)
            scores = measure(config, evaluation[run.task], not given.quiet)
        except (UserError, RunFailed) as error:
            problems.setdefault(str(error), []).append(run.name)
            continue
        if scores is None:
            print(f"stopped in {run.name}; the same command continues", file=sys.stderr)
            return 143
        for column, score in task.columns.items():
            if score in scores:  # a score is missing if no judge gave a grade
                own = found.setdefault(run.method, {}).setdefault(column, [])
                own.append(task.factor * scores[score])
    table = _table(experiment, found, tasks, methods)
    _conclude(given.out, name, table, [given.out / run.name for run in configs])
    for problem in in_words(problems):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _product(
    tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, str, int]]:
    return [(task, method, seed) for seed in seeds for task in tasks for method in methods]


def _released(task: str, options: EvalOptions, given: argparse.Namespace) -> EvalOptions:
    """Returns the evaluation options of the published code, except for those that were given."""
    values = released_evaluation(TASKS[task].config) | sampling_given(given)
    return dataclasses.replace(options, **values)


def _table(
    experiment: Experiment, found: Found, tasks: Sequence[str], methods: Sequence[str]
) -> str:
    own = {column: (column,) for task in tasks for column in TASKS[task].columns}
    whole = set(experiment.tasks) <= set(tasks)
    rows = experiment.rows
    if not whole:  # of a part of the columns no average is printed in the paper
        rows = {row: {c: v for c, v in of.items() if c in own} for row, of in rows.items()}
    columns = experiment.columns if whole and experiment.columns else own
    return render(rows, found, columns, methods, experiment.average)


def _conclude(out: Path, name: str, table: str, folders: Sequence[Path]) -> None:
    """Writes and prints the table, and draws the figures for which the runs are sufficient."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / f"{name}.md", table + "\n")
    print(table)
    trained = [folder for folder in folders if (folder / RUN).is_file()]
    if trained and EXPERIMENTS[name].figures:
        numbers = EXPERIMENTS[name].figures
        drawn, lacking = draw_figures(gather(trained), out / name, numbers=numbers)
        for path in drawn:
            print(f"drawn: {path}")
        for line in lacking:
            print(f"not drawn: {line}")


def _all_configs(
    runs: Sequence[PaperRun], config_of
) -> tuple[dict[PaperRun, RunConfig], dict[str, list[str]]]:
    """Makes the configs of all runs, so that errors are found before any run is trained.

    Returns:
        The configs by run, and the names of the runs without one by error message.

    Raises:
        UserError: no run has a config.
    """
    configs: dict[PaperRun, RunConfig] = {}
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


def in_words(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each error, with the names of all runs that have it.

    >>> in_words({"no rows": ["a"], "no model": ["b", "c"]})
    ['not done: a: no rows', 'not done: no model (2 runs: b, c)']
    """
    return [
        f"not done: {runs[0]}: {error}"
        if len(runs) == 1
        else f"not done: {error} ({len(runs)} runs: {', '.join(runs)})"
        for error, runs in problems.items()
    ]


def check_eval(config: RunConfig, options: EvalOptions) -> None:
    """Checks that the programs of a task may run, before a run is trained for it.

    Raises:
        UserError: options that do not allow running the task's programs.
    """
    task = config.task
    if isinstance(task, EvalTask) and task.scoring == CODE:
        check_programs(task, options)


def _parser(name: str, experiment: Experiment) -> Parser:
    parser = Parser(
        prog=f"{PROG} {name}",
        description=f"{experiment.title}: trains and evaluates every row and skips what is done. "
        "Fields of the runs can be overridden: --model.path FOLDER, --train.steps 100, ...",
    )
    parser.add_argument("--tasks", nargs="+", default=[*experiment.tasks], choices=list(TASKS))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(experiment.rows),
        metavar="METHOD",
        help="one or more of METHOD, METHOD@RANK or METHOD@RANK:OPTION=VALUE,...",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="FOLDER")
    parser.add_argument(
        "--as",
        dest="variant",
        choices=(AS_PRINTED, AS_RELEASED),
        default=AS_PRINTED,
        help="settings of the paper, or of the published code where it differs",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="[PART:]OPTION=VALUE,...",
        help="options of the config files: for all runs, for a config file or for a task",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_options(parser)
    return parser
