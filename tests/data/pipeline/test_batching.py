"""Plans: every row where it belongs, the same every time, and the buckets really the best."""

from itertools import combinations

import numpy as np
import pytest

from goat_jax.data.pipeline.batching import (
    FILLER,
    POOL,
    _best_buckets,
    choose_buckets,
    epoch_plan,
    evaluation_plan,
    padding_share,
)
from goat_jax.data.pipeline.tokenize import Encoded
from goat_jax.errors import UserError

LENGTHS = np.random.default_rng(7).integers(3, 60, size=1003).astype(np.int32)
BUCKETS = (16, 32, 48, 64)


def test_a_training_epoch_has_each_row_once_and_drops_the_rest():
    plan = epoch_plan(LENGTHS, 10, seed=3, epoch=0, buckets=BUCKETS)
    assert plan.rows.shape == (100, 10) and len(np.unique(plan.rows)) == 1000
    assert plan.rows.min() >= 0 and plan.rows.max() < len(LENGTHS)


def test_an_epoch_depends_on_seed_and_number_only():
    def rows(seed, epoch):
        return epoch_plan(LENGTHS, 10, seed, epoch, BUCKETS).rows.tolist()

    assert rows(3, 0) == rows(3, 0)
    assert rows(3, 0) != rows(3, 1) and rows(3, 0) != rows(4, 0)
    assert rows(0, 1) != rows(1, 0)
    dropped = [set(range(len(LENGTHS))) - set(np.ravel(rows(3, epoch))) for epoch in (0, 1)]
    assert dropped[0] != dropped[1]


def test_each_batch_has_the_smallest_bucket_that_holds_it():
    plan = epoch_plan(LENGTHS, 10, 3, 0, BUCKETS)
    for rows, length in zip(plan.rows, plan.lengths, strict=True):
        assert length == min(b for b in BUCKETS if b >= LENGTHS[rows].max())


def test_rows_are_sorted_within_pools_only():
    lengths = np.arange(1, 2001)
    rows = epoch_plan(lengths, 10, 0, 0, (2000,)).rows  # 200 batches: 4 pools of 50
    spread = np.ptp(lengths[rows], axis=1)
    # One sort of everything would make every spread 9, no sort about 1600; a quarter of all
    # lengths, sorted, makes four times 9.
    assert 25 < spread.mean() < 50 and (spread > 9).mean() > 0.9


def test_batches_come_in_random_order():
    plan = epoch_plan(LENGTHS[:400], 10, 3, 0, BUCKETS)  # one pool
    assert len(plan) < POOL
    changes = np.diff(plan.lengths)
    assert (changes < 0).sum() > 5 and (changes > 0).sum() > 5


def test_evaluation_keeps_every_row():
    plan = evaluation_plan(LENGTHS, 10, BUCKETS)
    assert plan.rows.shape == (101, 10)
    assert sorted(plan.rows[plan.rows != FILLER]) == list(range(1003))
    assert (plan.rows[:-1] != FILLER).all() and (plan.rows[-1] == FILLER).sum() == 7
    assert plan.lengths[-1] == 64 and plan.lengths[0] == 16


def test_best_buckets_against_every_choice():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = np.sort(rng.choice(np.arange(8, 200, 8), size=7, replace=False))
        counts = rng.integers(0, 9, size=7)
        for shapes in range(1, 6):
            costs = {
                below: sum(
                    count * min(sizes[i] for i in (*below, 6) if sizes[i] >= size)
                    for size, count in zip(sizes, counts, strict=True)
                )
                for below in combinations(range(6), shapes - 1)
            }
            cost, chosen = _best_buckets(sizes, counts, shapes)
            assert cost == min(costs.values()) == costs[chosen[:-1]]
            assert chosen[-1] == 6 and len(chosen) == shapes


def test_chosen_buckets_are_few_multiples_and_hold_every_row():
    buckets = choose_buckets(LENGTHS, 10, max_length=128)
    assert len(buckets) == 5 and all(b % 8 == 0 for b in buckets) and buckets[-1] == 64
    assert choose_buckets(LENGTHS, 10, max_length=128) == buckets
    assert choose_buckets(LENGTHS, 10, max_length=59)[-1] == 59  # never beyond max_length
    assert len(choose_buckets(LENGTHS, 10, 128, max_buckets=2)) == 2
    shares = [
        padding_share(
            LENGTHS, epoch_plan(LENGTHS, 10, 0, 1, choose_buckets(LENGTHS, 10, 64, max_buckets=n))
        )
        for n in (1, 2, 5)
    ]
    assert shares[0] > 0.4 and shares[0] > shares[1] + 0.1 > shares[2] + 0.2


def test_no_more_buckets_than_the_padding_asks_for():
    same = np.full(100, 16)
    assert choose_buckets(same, 10, 64) == (16,)
    two = np.repeat([8, 64], 50)
    assert choose_buckets(two, 10, 64) == (8, 64)
    near = np.repeat([52, 64], 50)  # one length wastes 9 %
    assert choose_buckets(near, 10, 64) == (64,)
    assert choose_buckets(near, 10, 64, padding=0.05) == (56, 64)


def test_multiples_of_4_only_where_they_bring_the_padding_down():
    even = np.tile(np.arange(6, 41), 40)
    few, many = (choose_buckets(even, 8, 64, max_buckets=n) for n in (3, 12))
    assert all(bucket % 8 == 0 for bucket in few)
    assert any(bucket % 8 for bucket in many) and all(bucket % 4 == 0 for bucket in many)
    plans = [epoch_plan(even, 8, 0, 1, buckets) for buckets in (few, many)]
    assert padding_share(even, plans[1]) < 0.1 < padding_share(even, plans[0])


def test_the_longest_row_fits_even_if_an_epoch_leaves_it_out():
    for longest in range(11):
        lengths = np.full(11, 4)
        lengths[longest] = 50
        assert choose_buckets(lengths, 10, 64, padding=0.0)[-1] == 56


def test_padding_share_by_hand():
    lengths = np.array([4, 8, 6])
    plan = evaluation_plan(lengths, 2, (6, 8))  # rows 0, 2 at 6; row 1 and a filler at 8
    assert padding_share(lengths, plan) == pytest.approx(1 - 18 / 28)


@pytest.mark.parametrize("buckets", [(), (0, 64), (64, 32), (32, 32, 64), (16, 32)])
def test_buckets_that_cannot_work(buckets):
    with pytest.raises(UserError, match="buckets"):
        evaluation_plan(LENGTHS, 10, buckets)


def test_other_errors_are_one_line():
    with pytest.raises(UserError, match="5 rows do not fill one batch of 6"):
        epoch_plan(LENGTHS[:5], 6, 0, 0, BUCKETS)
    with pytest.raises(UserError, match="0 rows in batches of 4"):
        evaluation_plan(LENGTHS[:0], 4, BUCKETS)
    with pytest.raises(UserError, match="up to 59 tokens, more than max_length 32"):
        choose_buckets(LENGTHS, 10, 32)
    with pytest.raises(UserError, match="up to 0 tokens"):
        choose_buckets(LENGTHS[:0], 10, 32)


def test_gather_pads_right_and_gives_fillers_weight_zero():
    ids = [np.array(x, np.int32) for x in ([5, 6], [7, 8, 9])]
    types = [np.array(x, np.int32) for x in ([0, 1], [0, 1, 1])]
    data = Encoded(ids, types, np.array([2, 3], np.int32), np.array([1, 0], np.int32), pad_id=1)
    batch = data.gather(np.array([1, 0, FILLER]), 4)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 1], [5, 6, 1, 1], [5, 6, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1, 1]
    assert batch["weights"].tolist() == [1.0, 1.0, 0.0]
    kinds = {name: array.dtype for name, array in batch.items()}
    assert kinds.pop("weights") == np.float32 and set(kinds.values()) == {np.dtype(np.int32)}
    only_fillers = data.gather(np.array([FILLER, FILLER]), 3)
    assert only_fillers["weights"].tolist() == [0.0, 0.0]
    assert only_fillers["attention_mask"].sum(axis=1).min() > 0  # no softmax over nothing
