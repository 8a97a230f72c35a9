"""Scores in plain numpy: [N] predictions against [N] labels, rows of weight 0 left out.

Every metric has the signature `(predictions, labels, weights=None) -> float`. Classification takes
class ids, regression takes values. `weights` [N] >= 0 count a row that many times.
"""

from collections.abc import Callable, Sequence

import numpy as np

from goat_jax.errors import UserError

Array = np.ndarray


def _rows(predictions: Array, labels: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    """The rows that count, as flat arrays with float64 weights."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    weights = np.ones(labels.shape) if weights is None else np.asarray(weights, np.float64)
    if predictions.ndim != 1 or not predictions.shape == labels.shape == weights.shape:
        raise UserError(
            f"metrics need three arrays of one length, got predictions {predictions.shape},"
            f" labels {labels.shape}, weights {weights.shape}"
        )
    keep = weights > 0
    if not keep.any():
        raise UserError("no row to score: all weights are zero")
    return predictions[keep], labels[keep], weights[keep]


def accuracy(predictions: Array, labels: Array, weights: Array | None = None) -> float:
    """The share of rows whose class is right.

    >>> accuracy([1, 0, 1, 1], [1, 0, 0, 1])
    0.75
    """
    predictions, labels, weights = _rows(predictions, labels, weights)
    return float(np.average(predictions == labels, weights=weights))


def matthews(predictions: Array, labels: Array, weights: Array | None = None) -> float:
    """Matthews correlation, for any number of classes; 0 if either side has one class only.

    The multi-class form of Gorodkin (2004), "Comparing two K-category assignments", eq. 8.

    >>> round(matthews([1, 0, 1, 1], [1, 0, 0, 1]), 4)
    0.5774
    """
    predictions, labels, weights = _rows(predictions, labels, weights)
    classes = np.union1d(predictions, labels)
    is_predicted = predictions[:, None] == classes
    is_label = labels[:, None] == classes
    total = weights.sum()
    predicted, true = weights @ is_predicted, weights @ is_label
    right = weights @ (predictions == labels)
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    # Weights are floats, so the zero of a one-class side is only zero up to rounding.
    if spread <= 1e-12 * total**4:
        return 0.0
    return float((right * total - predicted @ true) / np.sqrt(spread))


def f1(predictions: Array, labels: Array, weights: Array | None = None) -> float:
    """F1 of class 1 in a two-class task: 2 TP / (2 TP + FP + FN); 0 if class 1 never occurs.

    Raises UserError for class ids other than 0 and 1.

    >>> f1([1, 0, 1, 1], [1, 0, 0, 1])
    0.8
    """
    predictions, labels, weights = _rows(predictions, labels, weights)
    classes = np.union1d(predictions, labels)
    if not np.isin(classes, (0, 1)).all():
        raise UserError(f"f1 is for two classes, got class ids {classes.tolist()}: use accuracy")
    hits = weights @ ((predictions == 1) & (labels == 1))
    marked = weights @ (predictions == 1) + weights @ (labels == 1)
    return float(2 * hits / marked) if marked else 0.0


def pearson(predictions: Array, labels: Array, weights: Array | None = None) -> float:
    """Pearson correlation; 0 if either side is constant.

    >>> round(pearson([1.0, 2.0, 4.0], [1.0, 3.0, 5.0]), 4)
    0.982
    """
    predictions, labels, weights = _rows(predictions, labels, weights)
    # Asked of the values: a constant minus its own mean need not be exactly zero.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    x = predictions - np.average(predictions.astype(np.float64), weights=weights)
    y = labels - np.average(labels.astype(np.float64), weights=weights)
    return float(weights @ (x * y) / np.sqrt((weights @ x**2) * (weights @ y**2)))


def spearman(predictions: Array, labels: Array, weights: Array | None = None) -> float:
    """Spearman correlation: Pearson of the ranks, equal values sharing their mean rank.

    >>> spearman([0.1, 0.2, 0.9], [1.0, 3.0, 100.0])
    1.0
    """
    predictions, labels, weights = _rows(predictions, labels, weights)
    return pearson(_ranks(predictions, weights), _ranks(labels, weights), weights)


def _ranks(values: Array, weights: Array) -> Array:
    """[N] mean ranks; a row of weight w takes w places."""
    _, group = np.unique(values, return_inverse=True)
    places = np.bincount(group, weights=weights)
    return (np.cumsum(places) - (places - 1) / 2)[group]


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
}
REGRESSION_METRICS = frozenset({"pearson", "spearman"})


def score(
    names: Sequence[str], predictions: Array, labels: Array, weights: Array | None = None
) -> dict[str, float]:
    """Several metrics at once, in the order of their names.

    >>> score(("accuracy", "f1"), [1, 0], [1, 0])
    {'accuracy': 1.0, 'f1': 1.0}
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {unknown[0]!r}: use one of {', '.join(METRICS)}")
    return {name: METRICS[name](predictions, labels, weights) for name in names}
