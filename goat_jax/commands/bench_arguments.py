"""The arguments of ``goat-jax bench``, without what it imports to measure."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("what", choices=("layer", "step", "growth"))
    parser.add_argument("--rank", type=int, default=32, help="total rank of a layer (32)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of a layer"
    )
    parser.add_argument(
        "--size", action="append", default=[], metavar="TOKENS,IN,OUT", help="of a layer"
    )
    parser.add_argument("--config", metavar="FILE[:OPT=V,...]", help="whose steps")
    parser.add_argument("--model", metavar="NAME|FOLDER", help="whose sizes; the config's model")
    parser.add_argument(
        "--methods", nargs="+", default=["lora", "goat"], metavar="METHOD", help="of a step"
    )
    parser.add_argument("--turns", type=int, default=9, help="of each contender (9)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep JSON and figure there")
