"""Metrics in plain numpy: [N] predictions against [N] labels; rows with weight 0 are ignored.

Every metric has the signature `(predictions, labels, weights=None) -> float`. Classification takes
class ids, regression takes values. A row with weight w >= 0 counts w times.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from goat_jax.errors import UserError

Array = np.ndarray


def _rows(
    predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Returns the rows with nonzero weight, as flat arrays with float64 weights."""
    guessed, true = np.asarray(predictions), np.asarray(labels)
    counts = np.ones(true.shape) if weights is None else np.asarray(weights, np.float64)
    if guessed.ndim != 1 or not guessed.shape == true.shape == counts.shape:
        raise UserError(
            f"metrics need three arrays of one length, got predictions {guessed.shape},"
            f" labels {true.shape}, weights {counts.shape}"
        )
    keep = counts > 0
    if not keep.any():
        raise UserError("no row to score: all weights are zero")
    return guessed[keep], true[keep], counts[keep]


def accuracy(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Fraction of rows whose class is correct.

    >>> accuracy([1, 0, 1, 1], [1, 0, 0, 1])
    0.75
    """
    guessed, true, counts = _rows(predictions, labels, weights)
    return float(np.average(guessed == true, weights=counts))


def matthews(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Matthews correlation, for any number of classes; 0 if either side has one class only.

    The multi-class form of Gorodkin (2004), "Comparing two K-category assignments by a K-category
    correlation coefficient".

    >>> round(matthews([1, 0, 1, 1], [1, 0, 0, 1]), 4)
    0.5774
    """
    guessed, true, counts = _rows(predictions, labels, weights)
    classes = np.union1d(guessed, true)
    total = counts.sum()
    # Weighted counts of each class among the predictions and among the labels.
    in_guesses = counts @ (guessed[:, None] == classes)
    in_truth = counts @ (true[:, None] == classes)
    right = counts @ (guessed == true)
    spread = (total**2 - in_guesses @ in_guesses) * (total**2 - in_truth @ in_truth)
    # Weights are floats: with one class on a side the product is zero only up to rounding.
    if spread <= 1e-12 * total**4:
        return 0.0
    return float((right * total - in_guesses @ in_truth) / np.sqrt(spread))


def f1(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """F1 of class 1 in a two-class task: 2 TP / (2 TP + FP + FN); 0 if class 1 never occurs.

    Raises UserError for class ids other than 0 and 1.

    >>> f1([1, 0, 1, 1], [1, 0, 0, 1])
    0.8
    """
    guessed, true, counts = _rows(predictions, labels, weights)
    classes = np.union1d(guessed, true)
    if not np.isin(classes, (0, 1)).all():
        raise UserError(f"f1 is for two classes, got class ids {classes.tolist()}: use accuracy")
    hits = counts @ ((guessed == 1) & (true == 1))
    marked = counts @ (guessed == 1) + counts @ (true == 1)
    return float(2 * hits / marked) if marked else 0.0


def _positives(
    predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array]:
    """Returns each label's weighted true positives, and the sum of predicted and true ones, [C]."""
    guessed, true = np.asarray(predictions, bool), np.asarray(labels, bool)
    counts = np.ones(len(true)) if weights is None else np.asarray(weights, np.float64)
    if guessed.ndim != 2 or guessed.shape != true.shape or counts.shape != true.shape[:1]:
        raise UserError(
            f"these metrics need a table of rows and labels, got predictions {guessed.shape},"
            f" labels {true.shape}, weights {counts.shape}"
        )
    if not counts.any():
        raise UserError("no row to score: all weights are zero")
    return counts @ (guessed & true), counts @ guessed + counts @ true


def micro_f1(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """F1 over all pairs of a row and a label, [N, C] against [N, C]; 0 if no label occurs.

    >>> micro_f1([[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 1]])
    0.6666666666666666
    """
    hits, marked = _positives(predictions, labels, weights)
    return float(2 * hits.sum() / marked.sum()) if marked.sum() else 0.0


def macro_f1(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean F1 of all labels, [N, C] against [N, C]; a label that never occurs counts 0.

    >>> round(macro_f1([[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 1]]), 4)
    0.3333
    """
    hits, marked = _positives(predictions, labels, weights)
    return float(np.mean(2 * hits / np.where(marked == 0, 1.0, marked)))


def pearson(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Pearson correlation; 0 if either side is constant.

    >>> round(pearson([1.0, 2.0, 4.0], [1.0, 3.0, 5.0]), 4)
    0.982
    """
    guessed, true, counts = _rows(predictions, labels, weights)
    # Tested on the values: a constant minus its computed mean need not be exactly zero.
    if np.ptp(guessed) == 0 or np.ptp(true) == 0:
        return 0.0
    x = guessed - np.average(guessed.astype(np.float64), weights=counts)
    y = true - np.average(true.astype(np.float64), weights=counts)
    return float(counts @ (x * y) / np.sqrt((counts @ x**2) * (counts @ y**2)))


def spearman(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Spearman correlation: Pearson of the ranks, with ties given their mean rank.

    >>> spearman([0.1, 0.2, 0.9], [1.0, 3.0, 100.0])
    1.0
    """
    guessed, true, counts = _rows(predictions, labels, weights)
    return pearson(_ranks(guessed, counts), _ranks(true, counts), counts)


def _ranks(values: Array, weights: Array) -> Array:
    """Returns [N] mean ranks; a row with weight w takes w ranks."""
    _, group = np.unique(values, return_inverse=True)
    places = np.bincount(group, weights=weights)
    return (np.cumsum(places) - (places - 1) / 2)[group]


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "pearson": pearson,
    "spearman": spearman,
}
REGRESSION_METRICS = frozenset({"pearson", "spearman"})
TWO_CLASS_METRICS = frozenset({"f1"})
MULTI_LABEL_METRICS = ("micro_f1", "macro_f1")


def metrics_for(labels: Sequence[str]) -> list[str]:
    """Returns the metrics of rows with one of some classes, or with a number if there are none.

    >>> metrics_for(("bad", "good")), metrics_for(())
    (['accuracy', 'matthews', 'f1'], ['pearson', 'spearman'])
    """
    return [
        metric
        for metric in METRICS
        if (metric in REGRESSION_METRICS) != bool(labels)
        and (metric not in TWO_CLASS_METRICS or len(labels) == 2)
        and metric not in MULTI_LABEL_METRICS
    ]


def split_metric(name: str) -> tuple[str, str]:
    """Splits a metric's name into the metric and the part of the rows that it scores.

    >>> split_metric("accuracy_matched"), split_metric("f1")
    (('accuracy', 'matched'), ('f1', ''))
    """
    if name in METRICS:
        return name, ""
    base, _, part = name.partition("_")
    return (base, part) if base in METRICS else (name, "")


def score(
    names: Sequence[str],
    predictions: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
) -> dict[str, float]:
    """Computes several metrics; returns them by name, in the order given.

    >>> score(("accuracy", "f1"), [1, 0], [1, 0])
    {'accuracy': 1.0, 'f1': 1.0}
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {unknown[0]!r}: use one of {', '.join(METRICS)}")
    return {name: METRICS[name](predictions, labels, weights) for name in names}


LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


def goodness(metric: str, value: float) -> float:
    """Returns the score with the sign that makes higher better.

    Applied twice, it gives a finite score back. A score that is not finite ranks below all others
    for every metric.

    >>> goodness("accuracy", 0.9), goodness("perplexity", 7.0), goodness("accuracy", float("nan"))
    (0.9, -7.0, -inf)
    """
    if not math.isfinite(value):
        return -math.inf
    return -value if metric in LOWER_IS_BETTER else value
