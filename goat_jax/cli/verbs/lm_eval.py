"""``goat-jax evaluate --harness lm-eval``: scores a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from goat_jax.cli.arguments.words import flag_of
from goat_jax.errors import RunFailed, UserError, first_line, nearest
from goat_jax.evaluation.evaluate_lm import write_records
from goat_jax.evaluation.types import PREDICTIONS, EvalResult
from goat_jax.extras import import_extra

SCORING = "lm-eval"
"""Name of the scoring method in the names of files."""


def evaluate_with_lm_eval(arguments: argparse.Namespace, out: Path) -> Iterator[tuple[Any, ...]]:
    """Yields the model, task name, scores and written files of each task and group of tasks.

    Args:
        arguments: the parsed arguments of ``goat-jax evaluate``.
        out: the folder of the scores and of each question's record.

    Raises:
        UserError: no task, one that the harness does not know, or an argument without effect.
        RunFailed: the rows of a task could not be loaded.
    """
    for name in ("scoring", "data", "max_new_tokens", "temperature", "top_p", "beams", "judge"):
        if getattr(arguments, name) is not None:
            raise UserError(
                f"{flag_of(name)} has no effect with --harness lm-eval: its tasks say it"
            )
    if not arguments.task:
        raise UserError("--harness lm-eval needs --task, a task of lm-evaluation-harness")
    purpose = "--harness lm-eval"
    lm_eval, tasks = import_extra("lm_eval", purpose), import_extra("lm_eval.tasks", purpose)
    from goat_jax.evaluation.lm_eval import GoatLM

    manager = tasks.TaskManager(include_path=arguments.task_files)
    for name in arguments.task:
        if name not in manager.all_tasks:
            known = nearest(name, manager.all_tasks)
            raise UserError(f"lm-eval has no task {name!r}{known}: `lm-eval ls tasks` lists them")
    model = GoatLM(
        arguments.source,
        step=arguments.step,
        dtype=arguments.dtype,
        tensor=arguments.tensor,
        batch_size=arguments.batch_size,
        seed=arguments.seed or 0,
    )
    cache = arguments.cache and str(arguments.cache / f"{model.name}-{model.digest()}")
    try:
        results = lm_eval.simple_evaluate(
            model,
            tasks=arguments.task,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.chat_template,
            use_cache=cache,
            task_manager=manager,
        )
    except OSError as error:
        raise RunFailed(f"the rows of a task could not be loaded: {first_line(error)}") from None
    handle = import_extra("lm_eval.utils", purpose).handle_non_serializable
    for name, entries in results["results"].items():
        samples = json.loads(json.dumps(results["samples"].get(name, []), default=handle))
        records = {PREDICTIONS: samples} if samples else {}
        result = EvalResult(_scores(entries), records)
        yield model, name, result.scores, write_records(out, name, SCORING, result)


def _scores(entries: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of a task, named with their filter unless it is the only one.

    >>> _scores({"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1.0})
    {'acc': 0.5, 'acc_stderr': 0.1, 'em,strict': 1.0}
    """
    return {
        name.removesuffix(",none"): value
        for name, value in entries.items()
        if "," in name and isinstance(value, int | float)
    }
