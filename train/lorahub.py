"""LoRAHub: combines trained runs for a new task by a few of its rows, without gradients.

    python train/lorahub.py configs/demo.py:method=lora runs/a runs/b runs/c --rows 16 --budget 40

Prints what every run scores alone on the task's evaluation rows, and what their combination does.
"""

import argparse
from pathlib import Path

from goat_jax.config import load_config
from goat_jax.run.compose import compose
from goat_jax.tables import render_table


def main() -> None:
    parser = argparse.ArgumentParser(description="Combine trained runs for a new task (LoRAHub).")
    parser.add_argument("config", help="a config file: names the new task")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--rows", type=int, default=16, help="rows that the search looks at")
    parser.add_argument("--budget", type=int, default=40, help="evaluations of these rows")
    options = parser.parse_args()
    config = load_config(options.config)
    found = compose(config, options.runs, rows=options.rows, budget=options.budget)
    names = ("loss", *config.task.metrics)
    rows = [
        [str(folder), f"{c:.3f}", *(f"{alone[name]:.4f}" for name in names)]
        for folder, c, alone in zip(options.runs, found.coefficients, found.alone, strict=True)
    ]
    rows.append(["combined", "", *(f"{found.scores[name]:.4f}" for name in names)])
    print(render_table(["run", "coefficient", *names], rows, markdown=True))


if __name__ == "__main__":
    main()
