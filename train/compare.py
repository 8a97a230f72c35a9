"""Several methods on one config at the same total rank: a table of what each reached.

    python train/compare.py configs/demo.py goat molora lora

Every run has its own folder beside the config's and continues where it stopped; what is finished is
not trained again.
"""

import dataclasses
import sys

from goat_jax.config import load_config
from goat_jax.run.fit import fit
from goat_jax.tables import render_table


def main(source: str, *methods: str) -> None:
    rows = []
    for method in methods:
        config = load_config(f"{source}{',' if ':' in source else ':'}method={method}")
        config = dataclasses.replace(config, out=f"{config.out}-{method}")
        summary = fit(config)
        trained = summary.built.inject_report.trained_parameters
        names = ("loss", *config.task.metrics)
        rows.append([method, f"{trained:,}", *(f"{summary.after[name]:.4f}" for name in names)])
    print(render_table(["method", "trained", "loss", *config.task.metrics], rows, markdown=True))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} CONFIG METHOD [METHOD ...]")
    main(*sys.argv[1:])
