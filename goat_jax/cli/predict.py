"""``goat-jax predict``: labels, values or answers of a run for rows without labels."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from goat_jax.data.tasks.language import LanguageTask
from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.inference.output_file import check_out, digest_of_rows, write_predictions
from goat_jax.inference.predictions import Predictions, result_columns
from goat_jax.inference.predictors import predictor_of, sampling_of
from goat_jax.inference.trained_run import TrainedRun, run_config
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.logging.progress_bar import TrainProgress

CHUNK = 4
"""Number of batches that are predicted together and then written."""

SAMPLING = ("max_new_tokens", "temperature", "top_p", "seed")
"""Arguments for language models only."""


def predict(given: argparse.Namespace) -> int:
    """Writes the predictions for a file of rows, or prints those for texts.

    Args:
        given: the parsed arguments of ``goat-jax predict``.

    Returns:
        The exit code.

    Raises:
        UserError: arguments that do not fit, a row that the task cannot read, or a file that
            cannot be continued.
    """
    if bool(given.data) == bool(given.text):
        raise UserError("predict takes --data FILE --out FILE, or --text TEXT: give one of them")
    if bool(given.data) != bool(given.out):
        raise UserError("--data and --out go together: give the file to write with --out")
    mesh = MeshConfig(tensor=given.tensor)
    config = run_config(given.run_folder, mesh)
    task, kind = config.task, predictor_of(config.task)
    sampling = {name: getattr(given, name) for name in SAMPLING if getattr(given, name) is not None}
    if sampling and not isinstance(task, LanguageTask):
        flag = "--" + next(iter(sampling)).replace("_", "-")
        raise UserError(f"{flag} is for language models: {given.run_folder} predicts without it")
    settings = sampling_of(task, **sampling)
    if given.text:
        rows = [kind.as_row(task, texts[0] if len(texts) == 1 else texts) for texts in given.text]
        encoded = kind.encode(task, config, rows, "--text")
        run = TrainedRun(given.run_folder, given.step, mesh)
        ask = run.predictor(rows, encoded, given.batch_size, **sampling)
        _print(ask(range(len(rows))), given.json)
        return 0
    out = user_path(given.out)
    check_out(out)
    rows = kind.read(task, given.data)
    encoded = kind.encode(task, config, rows, ", ".join(given.data))
    run = TrainedRun(given.run_folder, given.step, mesh)
    size = given.batch_size or kind.batch_size(config)
    ask = run.predictor(rows, encoded, size, **sampling)
    identity = {
        "input": digest_of_rows(rows),
        "checkpoint": run.digest(),
        "batch size or sampling": json.dumps([size, dataclasses.asdict(settings)]),
    }
    classes = getattr(task, "labels", ())
    with TrainProgress(len(rows), enabled=not given.quiet) as bar:
        begun = write_predictions(out, rows, classes, ask, CHUNK * size, identity, bar.update)
    _report(out, len(rows), begun, getattr(encoded, "truncated", 0), given.json)
    return 0


def _print(found: Predictions, as_json: bool) -> None:
    if not as_json:
        print(found)
        return
    columns = result_columns(found.classes, found.rows[0])
    for row, result in zip(found.rows, found.results(), strict=True):
        print(json.dumps(dict(row) | dict(zip(columns, result, strict=True)), default=str))


def _report(out: Path, count: int, begun: int, cut: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(out), "rows": count, "continued_after": begun, "cut": cut}))
        return
    notes = [f"{begun:,} of them were there already"] if begun else []
    notes += [f"{cut:,} cut short"] if cut else []
    print(", ".join([f"{out}: {count:,} rows", *notes]))
