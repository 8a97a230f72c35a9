"""Runs one part of the suite in a process of its own: PART, SETTINGS as JSON, FILE for results."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from goat_jax.bench.accelerator.parts import PARTS
from goat_jax.bench.accelerator.rows import Settings
from goat_jax.bench.turns import machine


def main(part: str, settings: str, file: str) -> int:
    """Writes a line of JSON for the machine, for each row, and for a failure."""
    with Path(file).open("w") as results:

        def write(what: str, value: object) -> None:
            results.write(json.dumps({what: value}) + "\n")
            results.flush()  # what is measured is kept even if this process is ended

        try:
            write("machine", machine())
            for row in PARTS[part].rows(Settings(**json.loads(settings))):
                write("row", dataclasses.asdict(row))
        except Exception as error:  # of any part of the library, of jax, or of a compiler
            write("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
