"""Trains and evaluates all methods and seeds of a table of evaluation tasks, for
``train/commonsense.py`` and ``train/generation.py``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from goat_jax.analysis.result_files import Key, keep_scores, kept_scores
from goat_jax.analysis.run_results import check_all_different
from goat_jax.cli.arguments.config import read_config, with_adapter
from goat_jax.cli.arguments.evaluation import add_options, options_of
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.cli.verbs.train import draw
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.evaluation import CODE, EvalTask, named_by_set
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.code import check_programs
from goat_jax.evaluation.evaluate_lm import check_needs, evaluate_task, write_records
from goat_jax.evaluation.model import load_eval_model
from goat_jax.evaluation.types import CUT_ANSWERS, EvalOptions
from goat_jax.training.trainer import fit
from reproduction.labels import Label, add_arguments, options_by_part, read_label
from reproduction.tables import Cell, Scores, all_configs, conclude, in_words, render


@dataclasses.dataclass(frozen=True)
class RunKind:
    """A kind of training run, whose scores fill one or several columns of the table.

    Attributes:
        config: the config file; its options include method and seed.
        columns: column of the table -> name of the score that it shows.
        factor: the factor that the scores are multiplied by: 100 turns fractions into percent.
    """

    config: Path
    columns: Mapping[str, str]
    factor: float = 100.0

    def source(self, label: Label, seed: int, options: str = "") -> str:
        """Returns the config file with the options of one run.

        Args:
            label: the method and its options.
            seed: the run's seed.
            options: further options of the config file.
        """
        own = f"{self.config}:{label.options},seed={seed}"
        return f"{own},{options}" if options else own


@dataclasses.dataclass(frozen=True)
class EvalSweep:
    """Table of evaluation tasks and the runs that fill it.

    Attributes:
        runs: name of a kind of run -> its config file and its columns.
        paper: method -> column -> published score.
        name: the name of the program and of the folder of its runs.
    """

    runs: Mapping[str, RunKind]
    paper: Scores
    name: str


@dataclasses.dataclass(frozen=True)
class EvalRun:
    """One run of a table of evaluation tasks.

    Attributes:
        run: the kind of run, a key of the table's `runs`.
        method: the method, in the form that `labels.read_label` reads; it names the table's row.
        seed: the run's seed.
    """

    run: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.run}-{read_label(self.method).name}-seed{self.seed}"


def main(sweep: EvalSweep, arguments: Sequence[str] | None = None) -> int:
    """Makes the runs that are not finished, then prints the table.

    Args:
        sweep: the table.
        arguments: the words of the command line; None for those of the process.

    Returns:
        The exit code: 0, 1 if a run failed, 2 for bad input, 143 if the program was stopped.
    """
    return in_one_line(sweep.name, lambda: _main(sweep, arguments))


def _main(sweep: EvalSweep, arguments: Sequence[str] | None) -> int:
    given, overrides = _parser(sweep).parse_known_args(arguments)
    check_all_different("--seeds", given.seeds, at_least=0, whole=True)
    options, of_run = options_of(given), options_by_part(given.options, list(sweep.runs))
    methods = list(dict.fromkeys(read_label(text).text for text in given.methods))
    runs = list(dict.fromkeys(given.runs))
    eval_runs = [
        EvalRun(run, method, seed) for seed in given.seeds for run in runs for method in methods
    ]

    def checked(each: EvalRun) -> RunConfig:
        label = read_label(each.method)
        source = sweep.runs[each.run].source(label, each.seed, of_run[each.run])
        config = config_of(source, overrides, label, sweep.name)
        check_eval(config, options)
        return dataclasses.replace(config, out=str(given.out / each.name))

    configs, problems = all_configs(eval_runs, checked)
    found: dict[Cell, float] = {}
    for each, config in configs.items():
        try:
            scores = run_one(config, options, not given.quiet)
        except (UserError, RunFailed) as error:
            problems.setdefault(str(error), []).append(each.name)
            continue
        if scores is None:
            print(f"stopped in {each.name}; the same command continues", file=sys.stderr)
            return 143
        run = sweep.runs[each.run]
        for column, score in run.columns.items():
            if score in scores:  # a score is missing if no judge gave a grade
                found[Cell(column, each.method, each.seed)] = run.factor * scores[score]
    columns = [column for name in runs for column in sweep.runs[name].columns]
    table = render(sweep.paper, found, columns, methods)
    conclude(given.out, table, in_words("not done", problems))
    return 1 if problems else 0


def _parser(sweep: EvalSweep) -> Parser:
    parser = Parser(
        prog=sweep.name,
        description="Trains and evaluates every method and skips what is done. Fields of "
        "the runs can be overridden: --model.path FOLDER, --train.steps 100, ...",
    )
    parser.add_argument("--runs", nargs="+", default=list(sweep.runs), choices=list(sweep.runs))
    add_arguments(parser, sweep.paper, sweep.name)
    add_options(parser)
    return parser


def config_of(source: str, overrides: Sequence[str], label: Label, prog: str) -> RunConfig:
    """Returns the config of one run, with the adapter options of its label.

    Args:
        source: the config file with its options.
        overrides: ``--field value ...``, which override the config file.
        label: the method and its options.
        prog: the program, for its help.
    """
    return with_adapter(read_config(source, overrides, prog), label.adapter)


def check_eval(config: RunConfig, options: EvalOptions) -> None:
    """Checks that the task can be evaluated, before a run is trained for it.

    Raises:
        UserError: a task without evaluation questions, or options that do not allow running its
            programs.
    """
    task = config.task
    if not isinstance(task, EvalTask):
        raise UserError(f"task {task.name} has no questions")
    if task.scoring == CODE:
        check_programs(task, options)


def run_one(config: RunConfig, options: EvalOptions, progress: bool) -> dict[str, float] | None:
    """Returns the scores of one run, which is trained and evaluated now unless it is finished.

    Args:
        config: the run's config.
        options: the evaluation options.
        progress: whether to draw a progress bar.

    Returns:
        The scores, or None if the run was stopped.

    Raises:
        UserError: an error of `fit` or `evaluate_task`, or a kept result of other settings.
        RunFailed: a run that failed in `fit` or `evaluate_task`.
    """
    folder, key, task = Path(config.out), Key.of(config, options), config.task
    assert isinstance(task, EvalTask)
    kept, changed = kept_scores(folder, key)
    if kept is not None:
        return kept
    if changed:
        print(f"{folder.name}: {', '.join(changed[:3])} changed: evaluated again", file=sys.stderr)
    check_needs(task, task.scoring, options)
    summary = fit(config, progress=progress)
    if summary.stopped.startswith("SIG"):
        return None
    draw(folder)
    model, where = load_eval_model(str(folder), summary.step), folder / "evaluation"
    found = evaluate_task(model, task, task.scoring, options, folder=where)
    write_records(where, task.name, task.scoring, found)
    if found.problem:
        raise RunFailed(found.problem)
    if CUT_ANSWERS in found.scores:
        said = f"{found.scores[CUT_ANSWERS]:.1%} of the answers were cut at --max-new-tokens"
        print(f"{folder.name}: {said}", file=sys.stderr)
    scores = named_by_set(found.scores, task.questions)
    keep_scores(folder, key, scores, notes=summary.notes)
    jax.clear_caches()  # the next run compiles other programs; these only take memory
    return scores
