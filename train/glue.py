"""The paper's table of GLUE: RoBERTa-large, seven tasks, every method, beside the published scores.

    python train/glue.py --options folder=data/glue --model.path path/to/roberta-large
    python train/glue.py --tasks cola rte --methods lora goat --seeds 0 1 2

Every run has a folder under runs/glue. An interrupted run continues where it stopped, and finished
runs are not repeated. The table is printed at the end and written to runs/glue/table.md.
"""

import sys
from pathlib import Path

from reproduction.published_scores import GLUE_SCORES
from reproduction.tables import PaperTable, main

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "glue.py"
TABLE = PaperTable(CONFIG, GLUE_SCORES, "accuracy", "glue")

if __name__ == "__main__":
    sys.exit(main(TABLE))
