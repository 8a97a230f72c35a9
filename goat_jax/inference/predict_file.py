"""Predicts rows into a file: on one device, on a mesh, in one process or several."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from goat_jax.data.sources.formats import Row
from goat_jax.inference.output_file import chunks, digest_of_rows, write_predictions
from goat_jax.inference.predictors import predictor_of, sampling_of
from goat_jax.inference.trained_run import TrainedRun
from goat_jax.training.distributed.processes import from_first, is_first

CHUNK = 4
"""Number of batches that are predicted together and then written."""


def predict_to_file(
    run: TrainedRun,
    rows: Sequence[Row],
    encoded: Any,
    out: Path,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    **sampling: Any,
) -> int:
    """Writes rows with their predictions to a file, or continues it.

    In a multi-process run every process calls this function with the same rows. Each computes the
    part of every batch that its devices hold, and the first one writes.

    Args:
        run: the run.
        rows: the rows as they are written.
        encoded: the rows as the task's `Predictor.encode` returns them.
        out: the file; the ending of its name gives the format.
        batch_size: the number of rows in a batch; None for the default of `TrainedRun.predict`.
        progress: a function that is called with the number of rows in the file.
        sampling: as for `TrainedRun.predict`.

    Returns:
        The number of rows that the file had before.

    Raises:
        UserError: see `write_predictions`.
    """
    task, config = run.config.task, run.config
    predictor = predictor_of(task)
    size = batch_size or predictor.batch_size(config)
    predict = run.predictor(rows, encoded, size, **sampling)
    settings = [size, config.mesh.given, dataclasses.asdict(sampling_of(task, **sampling))]
    identity = {
        "input": digest_of_rows(rows),
        "checkpoint": run.digest(),
        "batch size, mesh or sampling": json.dumps(settings),
    }
    if not is_first():
        begun = from_first(0)
        for numbers in chunks(begun, len(rows), CHUNK * size):
            predict(numbers)
        return begun
    classes = predictor.classes(task)
    return write_predictions(
        out, rows, classes, predict, CHUNK * size, identity, progress, from_first
    )
