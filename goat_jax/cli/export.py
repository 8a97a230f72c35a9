"""``goat-jax export``."""

from __future__ import annotations

import json
from pathlib import Path

from goat_jax.interop.export_run import Exported, export_run
from goat_jax.text_tables import render_table


def export(
    folder: Path,
    to: str,
    out: Path,
    *,
    step: int | None,
    task: int | None,
    rows: int,
    dtype: str | None,
    as_json: bool,
) -> int:
    """Exports a run and prints where to, its scores, and what must be known."""
    made = export_run(folder, to, out, step=step, task=task, rows=rows, dtype=dtype)
    if as_json:
        about = {"folder": str(out), "step": made.step, "notes": made.notes}
        print(json.dumps(about | {"scores": made.scores}))
    else:
        print(report(made))
    return 0


def report(made: Exported) -> str:
    """The scores and notes of an export."""
    columns = list(made.scores)
    metrics = list(made.scores[columns[0]])
    table = [[m, *(f"{made.scores[column][m]:.4f}" for column in columns)] for m in metrics]
    lines = [render_table(["evaluation rows", *columns], table), *made.notes]
    return "\n".join([*lines, f"step {made.step} written to {made.folder}"])
