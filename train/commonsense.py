"""The paper's table of commonsense reasoning: every method beside the published scores.

    python train/commonsense.py --options folder=data/commonsense --model.path path/to/Llama-2-7b
    python train/commonsense.py --methods lora goat goat@16:rho=5 --seeds 0 1 2

There is one run per method and seed: it trains on Commonsense170K and is evaluated on all eight
sets. An interrupted run continues where it stopped, and finished runs are not repeated. The table
is also written to runs/commonsense/table.md.
"""

import sys
from pathlib import Path

from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS, JOINT
from reproduction.eval_tables import EvalSweep, RunKind, main
from reproduction.published_scores import COMMONSENSE_SCORES

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "commonsense.py"
RUN = RunKind(CONFIG, {name: f"accuracy/{name}" for name in FOLDERS})
SWEEP = EvalSweep({JOINT: RUN}, COMMONSENSE_SCORES, "commonsense")

if __name__ == "__main__":
    sys.exit(main(SWEEP))
