"""The arguments of ``goat-jax sweep``, without what it imports to train."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE[:OPT=V,...]")
    parser.add_argument(
        "--over",
        required=True,
        nargs="+",
        metavar="FIELD=V,V,...|LOW..HIGH[:log]",
        help="fields of the config, adapter.OPTION for those of a method's parts",
    )
    parser.add_argument(
        "--random", type=int, metavar="N", help="draw N points; the whole grid if not given"
    )
    parser.add_argument("--draw", type=int, default=0, metavar="SEED", help="of --random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="runs in one step (memory!)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), metavar="FOLDER")
