"""Scores against numbers worked out by hand from the published formulas."""

import warnings

import numpy as np
import pytest

from goat_jax.data.metrics import (
    METRICS,
    MULTI_LABEL_METRICS,
    accuracy,
    f1,
    goodness,
    macro_f1,
    matthews,
    micro_f1,
    pearson,
    score,
    spearman,
)
from goat_jax.errors import UserError

# Two classes: TP 3, TN 2, FP 1, FN 2.
GUESS = np.array([1, 1, 1, 0, 0, 1, 0, 0])
TRUE = np.array([1, 1, 1, 0, 0, 0, 1, 1])


def test_two_classes_by_hand():
    assert accuracy(GUESS, TRUE) == pytest.approx(5 / 8)
    assert f1(GUESS, TRUE) == pytest.approx(6 / 9)
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = 4 / sqrt(4 * 5 * 3 * 4)
    assert matthews(GUESS, TRUE) == pytest.approx(4 / np.sqrt(240))


def test_three_classes_by_hand():
    guess, true = np.array([0, 1, 2, 2, 0]), np.array([0, 1, 2, 1, 2])
    # s = 5, c = 3, guesses (2, 1, 2), truth (1, 2, 2):
    # (3*5 - (2+2+4)) / sqrt((25-9)(25-9)) = 7 / 16
    assert matthews(guess, true) == pytest.approx(7 / 16)


def test_several_labels_by_hand():
    guess = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]])
    true = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    # Of the three labels: TP 1, 1, 0, predicted or true 3, 3, 0.
    assert micro_f1(guess, true) == pytest.approx(4 / 6)
    assert macro_f1(guess, true) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_correlations_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])
    # dx = (-1.5, -.5, .5, 1.5), dy = (-6.5, -3.5, 1.5, 8.5): 25 / sqrt(5 * 129)
    assert pearson(x, y) == pytest.approx(25 / np.sqrt(645))
    assert spearman(x, y) == pytest.approx(1.0)
    # Ties: ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5)
    assert spearman(np.array([1, 2, 2, 3]), x) == pytest.approx(4.5 / np.sqrt(22.5))


def test_correlations_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, size=200).astype(np.float32)
    y = x + rng.normal(size=200)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_counts_a_row_so_many_times(name):
    rng = np.random.default_rng(1)
    columns = (3,) if name in MULTI_LABEL_METRICS else ()
    guess, true = rng.integers(0, 2, size=(2, 40, *columns))
    times = rng.integers(0, 4, size=40)
    repeated = METRICS[name](np.repeat(guess, times, 0), np.repeat(true, times, 0))
    assert METRICS[name](guess, true, times) == pytest.approx(repeated)
    nines, zeros = np.full((2, *columns), 9), np.zeros((2, *columns), int)
    rows = np.concatenate([guess, nines]), np.concatenate([true, zeros])
    padded = METRICS[name](*rows, [1] * 40 + [0, 0])
    assert padded == pytest.approx(METRICS[name](guess, true))


def test_a_constant_side_scores_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert matthews(np.ones(8, int), TRUE) == 0.0
        assert matthews(np.ones(7, int), TRUE[:7], np.full(7, 0.1)) == 0.0
        # In one of thirty rounding leaves 3e-13 where the exact value is zero.
        for weights in np.random.default_rng(0).random((200, 11)):
            assert matthews(np.ones(11, int), np.arange(11) % 2, weights) == 0.0
        assert f1(np.zeros(3, int), np.zeros(3, int)) == 0.0
        assert pearson(np.full(7, 0.1), np.arange(7)) == 0.0
        assert spearman(np.arange(7), np.full(7, 0.1)) == 0.0


def test_perfect_and_opposite():
    assert matthews(TRUE, TRUE) == pytest.approx(1.0)
    assert matthews(1 - TRUE, TRUE) == pytest.approx(-1.0)
    assert pearson(-TRUE, TRUE) == pytest.approx(-1.0)


def test_a_diverged_model_does_not_score():
    assert np.isnan(pearson(np.array([np.nan, 1.0]), np.array([0.0, 1.0])))


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_score_that_is_not_finite_is_below_all_others(metric):
    worst = min(goodness(metric, value) for value in (-1e300, 1e300))
    assert all(goodness(metric, value) < worst for value in (np.nan, np.inf, -np.inf))


def test_errors():
    with pytest.raises(UserError, match=r"predictions \(2,\), labels \(3,\)"):
        accuracy(np.zeros(2), np.zeros(3))
    with pytest.raises(UserError, match="all weights are zero"):
        accuracy(TRUE, TRUE, np.zeros(8))
    with pytest.raises(UserError, match=r"f1 is for two classes, got class ids \[0, 2\]"):
        f1(np.array([0, 2]), np.array([0, 2]))
    with pytest.raises(UserError, match="unknown metric 'mcc'"):
        score(("accuracy", "mcc"), TRUE, TRUE)


def test_score_keeps_the_order():
    assert list(score(("f1", "accuracy"), GUESS, TRUE)) == ["f1", "accuracy"]
