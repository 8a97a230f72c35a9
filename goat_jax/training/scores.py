"""Scores of a run's evaluation: the metrics of each kind of task, from its steps' outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from goat_jax.data.entities import entity_scores
from goat_jax.data.metrics import score, split_metric
from goat_jax.data.pipeline.options import share_most_likely
from goat_jax.data.pipeline.tokenize_words import NO_TAG
from goat_jax.data.tasks.evaluation import ACCURACY as OPTION_ACCURACY
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.language import PERPLEXITY, TOKEN_ACCURACY, LanguageTask
from goat_jax.data.tasks.text import TextTask
from goat_jax.data.tasks.tokens import ACCURACY, TokenTask

Totals = Mapping[str, float]
"""Name -> sum over all rows, as the evaluation step returns them."""


def score_outputs(
    task: TextTask | ImageTask,
    totals: Totals,
    batches: Sequence[Mapping],
    outputs: Sequence[np.ndarray],
) -> dict[str, float]:
    """Scores predictions: the class with the largest logit, or the one output of a regression.

    Of rows with several labels, all labels with a probability above a half are predicted.

    A metric over a part of the rows is left out if the rows do not have that part.
    """
    del totals
    names = [name for name in batches[0] if name in ("labels", "weights") or "part_" in name]
    columns = _columns(batches, names)
    predictions = _predictions(np.concatenate(outputs), columns["labels"])
    scores = {}
    for metric in task.metrics:
        base, part = split_metric(metric)
        weights = columns["weights"]
        if part and f"part_{part}" not in columns:
            continue
        if part:
            weights = weights * columns[f"part_{part}"]
        scores[metric] = score((base,), predictions, columns["labels"], weights)[base]
    return scores


def _columns(batches: Sequence[Mapping], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Joins the batches' arrays of these names."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def _predictions(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2:
        return outputs > 0
    return outputs[:, 0] if outputs.shape[-1] == 1 else outputs.argmax(-1)


def score_tags(
    task: TokenTask,
    totals: Totals,
    batches: Sequence[Mapping],
    outputs: Sequence[np.ndarray],
) -> dict[str, float]:
    """Scores the tags of words; words that were cut off do not count."""
    predicted, true = [], []
    for batch, logits in zip(batches, outputs, strict=True):
        for row in np.flatnonzero(batch["weights"]):
            tagged = batch["labels"][row] != NO_TAG
            predicted.append([task.labels[tag] for tag in logits[row][tagged].argmax(-1)])
            true.append([task.labels[tag] for tag in batch["labels"][row][tagged]])
    known = {ACCURACY: totals["accuracy"] / totals["count"], **entity_scores(predicted, true)}
    return {name: known[name] for name in task.metrics}


def score_tokens(
    task: LanguageTask | EvalTask,
    totals: Totals,
    batches: Sequence[Mapping],
    outputs: Sequence[np.ndarray],
) -> dict[str, float]:
    """Returns metrics that are means over tokens."""
    del batches, outputs
    known = {
        PERPLEXITY: _perplexity(totals["loss"] / totals["count"]),
        TOKEN_ACCURACY: totals["token_accuracy"] / totals["count"],
    }
    return {name: known[name] for name in task.metrics}


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def score_options(
    task: EvalTask,
    totals: Totals,
    batches: Sequence[Mapping],
    outputs: Sequence[np.ndarray],
) -> dict[str, float]:
    """Scores the most likely options; other metrics are those of the correct options."""
    if not task.compares_options:
        return score_tokens(task, totals, batches, outputs)
    columns = _columns(batches, ("questions", "correct", "weights"))
    real, losses = columns["weights"] > 0, np.concatenate(outputs)
    answers = real & (columns["correct"] == 1)
    tokens = np.concatenate([batch["loss_mask"][:, 1:].sum(axis=1) for batch in batches])
    loss = float(losses[answers].sum() / tokens[answers].sum())
    questions, correct = columns["questions"][real], columns["correct"][real]
    known = {
        OPTION_ACCURACY: share_most_likely(questions, correct, losses[real]),
        PERPLEXITY: _perplexity(loss),
    }
    return {"loss": loss, **{name: known[name] for name in task.metrics}}
