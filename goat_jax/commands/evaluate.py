"""``goat-jax evaluate``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from goat_jax.config import RunConfig
from goat_jax.errors import UserError
from goat_jax.run.checkpoint import Checkpoints
from goat_jax.run.evaluate import evaluate as score
from goat_jax.run.folder import check_same_run, describe, load_run
from goat_jax.run.setup import build, evaluation_batches, load_rows
from goat_jax.tables import render_table


def evaluate(folder: Path, step: int | None, data: str | None, as_json: bool) -> int:
    """Prints the scores of a run's checkpoint on its task, or on other rows of the same columns."""
    config, saved = load_run(folder)
    scores, step = evaluate_run(folder, config, saved, step, data)
    if as_json:
        print(json.dumps({"step": step, **scores}))
    else:
        print(render_table(["step", *scores], [[step, *(f"{s:.4f}" for s in scores.values())]]))
    return 0


def evaluate_run(
    folder: Path, config: RunConfig, saved: dict[str, Any], step: int | None, data: str | None
) -> tuple[dict[str, float], int]:
    """Scores of one checkpoint, and its step."""
    built = build(config)
    check_same_run(folder, saved, describe(config, built))
    if data is not None:
        config = dataclasses.replace(
            config, task=dataclasses.replace(config.task, evaluation=data, evaluation_limit=None)
        )
    rows = evaluation_batches(config, load_rows(config, "evaluation")[0])
    best_by = config.train.best_by or config.task.metrics[0]
    checkpoints = Checkpoints(folder, best_by, read_only=True)
    step = checkpoints.best_step() if step is None else step
    known = checkpoints.all_steps()
    if step not in known:
        raise UserError(f"{folder} has no checkpoint of step {step}; there are: {known}")
    state = checkpoints.restore(built.state, None, step).state
    checkpoints.close()
    scores = score(built.eval_step, state.trainable, built.base, rows, config.task).scores
    return scores, step
