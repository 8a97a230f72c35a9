"""The study of methods at small size: which one to choose where two cores have to suffice.

    python train/study.py run --data FOLDER --tasks digits reviews --methods lora goat
    python train/study.py explain --data FOLDER --tasks digits --methods lora goat
    python train/study.py report --out docs/study

`run` trains what is missing and continues where it was stopped; with `--kept docs/study` complete
results there count as done. For each task and method the learning rate is chosen on rows held out
of the training rows; runs with five other seeds at this rate are scored on the test rows, at equal
rank and, on two tasks, at equal trained parameters. On one task the same is done with single
options of GOAT and LoRA changed. `report` adds the results to those that are kept as small files,
and writes the tables and figures from all. Results of other settings are no part of them: delete a
task's file before it gets others. FOLDER has
glue/, gsm8k/, commonsense/ (as LLM-Adapters' dataset folder) and fashion-mnist/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.errors import UserError
from goat_jax.hardware.compile_cache import keep_compiled
from studies.movement import keep_movements, movement_file, movements
from studies.records import collect, keep, kept, merged
from studies.report import write_report
from studies.runs import Study
from studies.tasks import TASKS, task_of

RUNS, KEPT = Path("runs/study"), Path("docs/study")


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("study", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train what is missing")
    run.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER")
    run.add_argument("--tasks", nargs="+", default=list(TASKS))
    run.add_argument("--methods", nargs="+", help="default: all of a task")
    run.add_argument("--runs-per-step", type=int, default=1)
    run.add_argument("--out", type=Path, default=RUNS, metavar="FOLDER")
    run.add_argument("--kept", type=Path, metavar="FOLDER", help="records that count as done")
    explain = verbs.add_parser("explain", help="compare how runs move their kernels")
    explain.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER")
    explain.add_argument("--tasks", nargs="+", required=True)
    explain.add_argument("--methods", nargs="+", required=True)
    explain.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="results")
    explain.add_argument("--out", type=Path, default=KEPT, metavar="FOLDER")
    report = verbs.add_parser("report", help="write records, tables and figures")
    report.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="new results")
    report.add_argument("--out", type=Path, default=KEPT, metavar="FOLDER")
    given = parser.parse_args(arguments)
    return {"run": train, "explain": explain_runs, "report": write}[given.verb](given)


def train(given: argparse.Namespace) -> int:
    """Trains the missing runs of the chosen tasks and methods."""
    keep_compiled()
    tasks = {name: task_of(name) for name in given.tasks}
    done = kept(given.kept) if given.kept else {}
    for name, task in tasks.items():
        study = Study(
            name, task, given.data, given.out, given.runs_per_step, kept=done.get(name, {})
        )
        for method in given.methods or task.methods():
            if method not in task.methods():
                raise UserError(f"{name} has no method {method!r}: use {', '.join(task.methods())}")
            study.train(method, lambda line: print(line, flush=True))
    return 0


def explain_runs(given: argparse.Namespace) -> int:
    """Trains one run of each method again and keeps how it moved the kernels."""
    keep_compiled()
    results = merged(kept(given.out), collect(given.runs))
    for name in given.tasks:
        path = movement_file(given.out, name)
        of_task = results.get(name, {})
        for method, movement in movements(task_of(name), of_task, given.data, given.methods):
            keep_movements({method: movement}, path)
            print(f"{name}: {method}", flush=True)
    return 0


def write(given: argparse.Namespace) -> int:
    """Adds new results to the records, and writes the report from all of them."""
    records = merged(kept(given.out), collect(given.runs))
    if not records:
        raise UserError(f"{given.runs} and {given.out} have no results: run `study.py run` first")
    keep(records, given.out)
    for path in write_report(records, given.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
