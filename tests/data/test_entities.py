"""Entities of tags, with the numbers that seqeval 1.2.2 computes of the same rows."""

import numpy as np
import pytest

from goat_jax.data.entities import entities, entity_scores

TAGS = ["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B"]
SEQEVAL = {
    "entity_precision": 0.7328519855595668,
    "entity_recall": 0.725,
    "entity_f1": 0.7289048473967685,
}


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["B-A", "I-A", "B-A"], {("A", 0, 1), ("A", 2, 2)}),
        (["I-A", "I-B", "O", "I-B"], {("A", 0, 0), ("B", 1, 1), ("B", 3, 3)}),
        (["S-B", "I-B", "E-B", "I-B"], {("B", 0, 0), ("B", 1, 2), ("B", 3, 3)}),
        (["O", "O"], set()),
    ],
)
def test_where_entities_begin_and_end(tags, found):
    assert entities(tags) == found


def test_scores_of_seqeval():
    rng = np.random.default_rng(0)
    true = [[TAGS[n] for n in rng.integers(0, len(TAGS), 9)] for _ in range(40)]
    guess = [[t if rng.random() < 0.7 else TAGS[rng.integers(len(TAGS))] for t in r] for r in true]
    found = entity_scores(guess, true)
    assert found == pytest.approx(SEQEVAL)
