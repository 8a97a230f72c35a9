"""``goat-jax evaluate``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from goat_jax.run.evaluate import evaluate as score
from goat_jax.run.reopen import reopen
from goat_jax.run.setup import evaluation_batches, load_rows
from goat_jax.tables import render_table


def evaluate(folder: Path, step: int | None, data: str | None, as_json: bool) -> int:
    """Prints the scores of a run's checkpoint on its task, or on other rows of the same columns."""
    scores, step = evaluate_run(folder, step, data)
    if as_json:
        print(json.dumps({"step": step, **scores}))
    else:
        print(render_table(["step", *scores], [[step, *(f"{s:.4f}" for s in scores.values())]]))
    return 0


def evaluate_run(folder: Path, step: int | None, data: str | None) -> tuple[dict[str, float], int]:
    """Scores of one checkpoint, and its step."""
    run = reopen(folder, step)
    config, built = run.config, run.built
    if data is not None:
        config = dataclasses.replace(
            config, task=dataclasses.replace(config.task, evaluation=data, evaluation_limit=None)
        )
    rows = evaluation_batches(config, load_rows(config, "evaluation")[0])
    base = run.state.frozen(built.base)
    scores = score(built.eval_step, run.state.trainable, base, rows, config.task).scores
    return scores, run.step
