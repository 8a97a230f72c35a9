"""The paper's tables, ablations and figures, each by one command, beside the published scores.

    python train/paper.py list
    python train/paper.py table4 --tasks rte cola --seeds 0 1 2 --model.path ROBERTA
    python train/paper.py table1 --options data_dir=data dtd:folder=images/dtd --model.path CLIP
    python train/paper.py table2 --run-programs --judge https://HOST/v1 --judge-model NAME \\
        --options math:folder=MetaMathQA code:folder=CodeFeedback chat:folder=WizardLM
    python train/paper.py figure1 --tasks rte --methods pissa@32 pissa@32:offset=1
    python train/paper.py table1 --as released --out runs/paper-released --model.path CLIP
    python train/paper.py draw runs/paper --out figures

The runs are in folders of runs/paper, which the experiments share: a run that table 1 has made is
not made again for table 5. An interrupted run continues where it stopped. The table is also
written to runs/paper/NAME.md. `draw` draws every figure that the given runs allow.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from goat_jax.analysis.collect_runs import gather
from goat_jax.cli.entry import Parser, in_one_line
from goat_jax.text_tables import render_table
from reproduction.experiments import EXPERIMENTS
from reproduction.figures import draw_figures
from reproduction.sweep import run_experiment


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("paper", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(
        prog="paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=["list", "draw", *EXPERIMENTS])
    name, rest = parser.parse_args(words[:1]).name, words[1:]
    others = {"list": list_experiments, "draw": draw}
    return others[name](rest) if name in others else run_experiment(name, rest)


def list_experiments(arguments: Sequence[str]) -> int:
    Parser(prog="paper list").parse_args(arguments)
    lines = [
        [name, each.title, len(each.rows) * len(each.tasks)] for name, each in EXPERIMENTS.items()
    ]
    print(render_table(["name", "shows", "runs for each seed"], lines))
    return 0


def draw(arguments: Sequence[str]) -> int:
    parser = Parser(prog="paper draw")
    parser.add_argument("folders", nargs="+", type=Path, help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER")
    parser.add_argument("--metric", help="score to show (default: each run's selection metric)")
    given = parser.parse_args(arguments)
    drawn, lacking = draw_figures(gather(given.folders), given.out, given.metric)
    for path in drawn:
        print(path)
    for line in lacking:
        print(f"not drawn: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
