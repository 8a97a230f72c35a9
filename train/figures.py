"""The paper's figures: trains the runs that one of them needs, or draws all that runs allow.

    python train/figures.py 5 --tasks cars dtd --model.path CLIP
    python train/figures.py 1 --table glue --tasks rte --seeds 0 1 2 --model.path ROBERTA
    python train/figures.py draw runs/vision runs/figure5 --out figures

Figures: 1 score against the segment that a single LoRA of rank 32 or 128 is initialized from,
min-max normalized for each rank, 2 loss and gradient norm of SVD initializations against scale and
rank, 4 loss curves by method, upcycled full fine-tuning among them, 5 score against rank, 6 score
against experts and active experts, 7 share of tokens per expert by task. Interrupted runs continue
where they stopped, and finished runs are not repeated. The tables of images and GLUE draw figures 4
and 7 by themselves.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from goat_jax.analysis.collect_runs import gather
from goat_jax.cli.entry import Parser, in_one_line
from reproduction import tables as paper_table
from reproduction.figures import draw_figures
from reproduction.published_scores import GLUE_SCORES, VISION_SCORES
from reproduction.tables import PaperTable

MIXTURES = ("molora", "hydralora", "goat")
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SCALES, RANKS, EXPERTS, ACTIVE = (
    (1, 2, 4, 16, 48),
    (8, 16, 32, 64, 128),
    (2, 4, 8, 16),
    (1, 2, 4, 8),
)
RUNS: dict[str, list[str]] = {
    "1": [f"pissa@{rank}:offset={n / 8:g}" for rank in (32, 128) for n in range(9)],
    "2": [f"pissa@{rank}:scale=fixed,value={s}" for rank in (1, 8, 32, 128) for s in SCALES],
    "4": ["full_moe", "lora", "pissa", "milora", "molora", "hydralora", "goat"],
    "5": [f"{name}@{rank}" for rank in RANKS for name in MIXTURES],
    "6": [f"goat@32:num_experts={e},top_k={k}" for e in EXPERTS for k in ACTIVE if k <= e],
    "7": ["goat"],
}
"""Figure -> the runs that it needs on every task: METHOD[@RANK][:OPTION=VALUE,...]."""

TABLES = {"vision": VISION_SCORES, "glue": GLUE_SCORES}


def main(arguments: Sequence[str] | None = None) -> int:
    return in_one_line("figures", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=[*RUNS, "draw"])
    parser.add_argument(
        "--table", choices=TABLES, default="vision", help="config file with the task and the model"
    )
    given, rest = parser.parse_known_args(arguments)
    if given.figure == "draw":
        return draw(rest)
    table = PaperTable(
        CONFIGS / f"{given.table}.py",
        TABLES[given.table],
        "accuracy",
        f"figure{given.figure}-{given.table}",
    )
    return paper_table.main(table, ["--methods", *RUNS[given.figure], *rest])


def draw(arguments: Sequence[str]) -> int:
    parser = Parser(prog="figures draw")
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
