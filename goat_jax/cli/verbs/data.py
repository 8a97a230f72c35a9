"""``goat-jax data``: lists the data sets and prepares them."""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

from goat_jax.data.prepare.prepare import RECIPES, default_folder, prepare
from goat_jax.data.prepare.recipe import Recipe
from goat_jax.data.tasks.registry import make_task
from goat_jax.data.tasks.text import TextTask, load_examples
from goat_jax.errors import UserError
from goat_jax.files import user_path, write_whole
from goat_jax.text_tables import human_bytes, render_table
from goat_jax.training.logging.progress_bar import make_console


def list_sets() -> int:
    """Prints every task whose data set can be prepared, with download size, source and license."""
    rows = [
        [task, human_bytes(recipe.size) if recipe.size else "-", _how(recipe), recipe.licence]
        for task, recipe in RECIPES.items()
    ]
    print(render_table(["task", "download", "source", "licence"], rows))
    return 0


def _how(recipe: Recipe) -> str:
    return f"by hand: {', '.join(recipe.by_hand)}" if recipe.by_hand else "fetched"


def prepare_set(task: str, out: Path | None, archives: Path | None, progress: bool = True) -> int:
    """Prepares one data set with progress bars; prints its folder, its row counts and its license.

    Args:
        task: the task's name.
        out: the folder of all data sets; None for the default one.
        archives: a folder that already has some of the files to fetch.
        progress: whether to draw progress bars.

    Returns:
        The exit code.
    """
    bar = _DownloadBar(progress)
    try:
        prepared = prepare(task, out, archives, bar.report)
    finally:
        bar.stop()
    rows = ", ".join(f"{name} {count:,}" for name, count in prepared.rows.items())
    done = "prepared" if prepared.fresh else "already prepared"
    print(f"{task}: {done} in {prepared.folder}: {rows}")
    print(f"licence: {RECIPES[task].licence}")
    if out is not None and user_path(out) != default_folder():
        print(f"for training: --task.data-dir {out}")
    return 0


def write_rows(name: str, out: Path | None, rows: int | None) -> int:
    """Writes training rows of a text task as a CSV file; returns the exit code 0.

    Args:
        name: the task's name.
        out: the file, which must not exist.
        rows: the number of rows, evenly spaced; None: all.
    """
    if out is None or out.suffix != ".csv":
        raise UserError("data write needs the file to write: give --out FILE.csv")
    if user_path(out).exists():
        raise UserError(f"{out} exists: give another name, or remove it")
    task = make_task(name)
    if not isinstance(task, TextTask):
        raise UserError(f"data write writes rows of text with a label, which {name} does not have")
    examples = load_examples(dataclasses.replace(task, train_limit=rows), "train")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*task.text, task.label])
    for *texts, label in zip(*examples.texts, examples.labels.tolist(), strict=True):
        writer.writerow([*texts, task.labels[label] if task.labels else label])
    user_path(out).parent.mkdir(parents=True, exist_ok=True)
    write_whole(user_path(out), text.getvalue())
    print(f"wrote {len(examples):,} rows to {out}")
    return 0


class _DownloadBar:
    """One progress bar per file, drawn in a terminal only and started by the first report."""

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def report(self, name: str, done: int, total: int | None) -> None:
        if not self._enabled:
            return
        if self._bar is None:
            self._bar = _make_bar()
            self._bar.start()
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total)
        self._bar.update(self._tasks[name], completed=done, total=total)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar() -> Any:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=make_console(sys.stderr),
    )
