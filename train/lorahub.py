"""LoRAHub: combines trained runs for a new task, using a few of its rows and no gradients.

    python train/lorahub.py demo:method=lora runs/a runs/b runs/c --rows 16 --budget 40
    python train/lorahub.py demo:method=lora runs/a runs/b --task.train other.jsonl

Prints the scores of every run alone on the task's evaluation rows, and those of the combination.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from goat_jax.cli.arguments.config import read_config
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.text_tables import render_table
from goat_jax.training.lorahub import compose
from goat_jax.validation.checks import check_number


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("lorahub", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="lorahub",
        description="Combine trained runs for a new task (LoRAHub). Fields of the config can be "
        "overridden: --task.train FILE, --train.seed 1, ...",
    )
    parser.add_argument("config", help="config file of the new task")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument(
        "--rows", type=int, default=16, help="rows on which the search measures the loss"
    )
    parser.add_argument(
        "--budget", type=int, default=40, help="evaluations of the loss in the search"
    )
    options, overrides = parser.parse_known_args(arguments)
    check_number("--rows", options.rows, at_least=1, whole=True)
    check_number("--budget", options.budget, at_least=1, whole=True)
    config = read_config(options.config, overrides, "lorahub")
    found = compose(config, options.runs, rows=options.rows, budget=options.budget)
    names = ("loss", *config.task.metrics)
    rows = [
        [str(folder), f"{c:.3f}", *(f"{alone[name]:.4f}" for name in names)]
        for folder, c, alone in zip(options.runs, found.coefficients, found.alone, strict=True)
    ]
    rows.append(["combined", "", *(f"{found.scores[name]:.4f}" for name in names)])
    print(render_table(["run", "coefficient", *names], rows, markdown=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
