"""``goat-jax predict``: labels, values or answers of a run for rows without labels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from goat_jax.cli.arguments.evaluation import sampling_given
from goat_jax.cli.arguments.words import flag_of
from goat_jax.data.sources.formats import Row
from goat_jax.data.tasks.language import LanguageTask
from goat_jax.errors import UserError
from goat_jax.files import user_path
from goat_jax.inference.output_file import check_out, left_out_columns
from goat_jax.inference.predict_file import predict_to_file
from goat_jax.inference.predictions import Predictions, result_columns
from goat_jax.inference.predictors import predictor_of, sampling_of
from goat_jax.inference.trained_run import TrainedRun
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.distributed.processes import is_first
from goat_jax.training.logging.progress_bar import TrainProgress


def predict(options: argparse.Namespace) -> int:
    """Writes the predictions for a file of rows, or prints those for texts.

    Args:
        options: the parsed arguments of ``goat-jax predict``.

    Returns:
        The exit code.

    Raises:
        UserError: arguments that do not fit, a row that the task cannot read, or a file that
            cannot be continued.
    """
    if bool(options.data) == bool(options.text):
        raise UserError("predict takes --data FILE --out FILE, or --text TEXT: give one of them")
    if bool(options.data) != bool(options.out):
        raise UserError("--data and --out go together: give the file to write with --out")
    mesh = MeshConfig(data=options.mesh_data, tensor=options.tensor)
    run = TrainedRun(options.run_folder, options.step, mesh)
    config, task = run.config, run.config.task
    kind = predictor_of(task)
    sampling = sampling_given(options)
    if sampling and not isinstance(task, LanguageTask):
        flag = flag_of(next(iter(sampling)))
        raise UserError(f"{flag} is for language models: {options.run_folder} predicts without it")
    if isinstance(task, LanguageTask) and mesh.data != 1:
        raise UserError("--mesh.data is for labels and values: a language model takes --tensor")
    sampling_of(task, **sampling)  # checks the numbers before any weights are loaded
    if options.text:
        rows = [kind.as_row(task, texts[0] if len(texts) == 1 else texts) for texts in options.text]
        encoded = kind.encode(task, config, rows, "--text")
        predictions = run.predictor(rows, encoded, options.batch_size, **sampling)(range(len(rows)))
        if is_first():
            _print(predictions, options.json)
        return 0
    out = user_path(options.out)
    if is_first():
        check_out(out)
    rows = kind.read(task, options.data)
    encoded = kind.encode(task, config, rows, ", ".join(options.data))
    with TrainProgress(len(rows), enabled=is_first() and not options.quiet) as bar:
        begun = predict_to_file(run, rows, encoded, out, options.batch_size, bar.update, **sampling)
    if is_first():
        _report(out, rows, begun, getattr(encoded, "truncated", 0), options.json)
    return 0


def _print(predictions: Predictions, as_json: bool) -> None:
    if not as_json:
        print(predictions)
        return
    columns = result_columns(predictions.classes, predictions.rows[0])
    for row, result in zip(predictions.rows, predictions.results(), strict=True):
        print(json.dumps(dict(row) | dict(zip(columns, result, strict=True)), default=str))


def _report(out: Path, rows: Sequence[Row], begun: int, cut: int, as_json: bool) -> None:
    count, left_out = len(rows), left_out_columns(rows)
    if as_json:
        facts = {"rows": count, "continued_after": begun, "cut": cut, "left_out": left_out}
        print(json.dumps({"file": str(out), **facts}))
        return
    notes = [f"{begun:,} of them were there already"] if begun else []
    notes += [f"{cut:,} cut short"] if cut else []
    notes += [f"without the images of column {', '.join(left_out)}"] if left_out else []
    print(", ".join([f"{out}: {count:,} rows", *notes]))
