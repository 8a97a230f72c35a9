"""The paper's table of image classification: CLIP ViT-B/32, seven sets, every method.

    python train/vision.py --options data_dir=data --model.path path/to/clip-vit-base-patch32
    python train/vision.py --tasks dtd eurosat --methods lora lora@16 goat:rho=5 --seeds 0 1 2
    python train/vision.py --tasks dtd cars --options dtd:folder=images/dtd cars:folder=images/cars

Every run has a folder under runs/vision. An interrupted run continues where it stopped, and
finished runs are not repeated. The table, with the published scores, is printed at the end and
written to runs/vision/table.md.
"""

import sys
from pathlib import Path

from reproduction.published_scores import VISION_SCORES
from reproduction.tables import PaperTable, main

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "vision.py"
TABLE = PaperTable(CONFIG, VISION_SCORES, "accuracy", "vision")

if __name__ == "__main__":
    sys.exit(main(TABLE))
