"""The training iterator resumes exactly; evaluation sees every row; processes split a batch."""

import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from goat_jax.data.pipeline.batching import FILLER
from goat_jax.data.pipeline.loader import (
    TrainBatches,
    batches_per_epoch,
    eval_batches,
    process_slice,
    train_iterator,
)
from goat_jax.data.pipeline.tokenize import Encoded
from goat_jax.errors import UserError

BATCH, LONGEST = 8, 48
KEYS = {"input_ids", "attention_mask", "token_type_ids", "labels", "weights"}


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    """100 rows; row i is made of the token i + 1, so a batch shows which rows it holds."""
    lengths = np.random.default_rng(1).integers(3, 41, size=100).astype(np.int32)
    ids = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    return Encoded(ids, None, lengths, np.arange(100, dtype=np.int32))


def assert_same(got, want):
    assert got.keys() == want.keys() == KEYS
    for name in KEYS:
        np.testing.assert_array_equal(got[name], want[name])


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_batches_have_the_promised_shapes(encoded):
    for batch in take(train_iterator(encoded, BATCH, 0, LONGEST), 15):
        assert batch.keys() == KEYS
        length = batch["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert batch[name].shape == (BATCH, length) and batch[name].dtype == np.int32
        assert batch["labels"].shape == batch["weights"].shape == (BATCH,)
        assert batch["labels"].dtype == np.int32 and batch["weights"].dtype == np.float32
        assert (batch["weights"] == 1).all()
        np.testing.assert_array_equal(batch["attention_mask"], batch["input_ids"] > 0)
        np.testing.assert_array_equal(batch["input_ids"][:, 0], batch["labels"] + 1)


def test_every_epoch_is_another_order_of_the_rows(encoded):
    assert batches_per_epoch(encoded, BATCH) == 12
    batches = take(train_iterator(encoded, BATCH, 0, LONGEST), 24)
    epochs = [np.concatenate([b["labels"] for b in batches[i : i + 12]]) for i in (0, 12)]
    for labels in epochs:
        assert len(np.unique(labels)) == 96
    assert epochs[0].tolist() != epochs[1].tolist()


def test_one_shape_for_each_bucket(encoded):
    source = TrainBatches(encoded, BATCH, 0, LONGEST)
    shapes = {source[i]["input_ids"].shape[1] for i in range(60)}
    assert shapes <= set(source.buckets) and len(source.buckets) <= 5


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("stop", [0, 5, 11, 12, 30])
def test_a_restored_iterator_continues_exactly(encoded, threads, stop):
    """Stopped within, at and beyond an epoch of 12 batches, with batches prefetched."""
    options = {"threads": threads}
    whole = take(train_iterator(encoded, BATCH, 5, LONGEST), stop + 14)
    first = train_iterator(encoded, BATCH, 5, LONGEST, **options)
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    take(first, 3)  # what is read after saving must not matter
    second = train_iterator(encoded, BATCH, 5, LONGEST, **options)
    take(second, 2)
    second.set_state(state)
    for got, want in zip(take(second, 14), whole[stop:], strict=True):
        assert_same(got, want)


def test_orbax_saves_and_restores_the_iterator(encoded, tmp_path):
    iterator = train_iterator(encoded, BATCH, 5, LONGEST, threads=2)
    take(iterator, 10)
    with ocp.CheckpointManager(tmp_path) as manager:
        data = grain.checkpoint.CheckpointSave(iterator)
        manager.save(10, args=ocp.args.Composite(data=data))
        manager.wait_until_finished()
    want = take(iterator, 5)  # across the end of the epoch
    fresh = train_iterator(encoded, BATCH, 5, LONGEST, threads=2)
    with ocp.CheckpointManager(tmp_path) as manager:
        data = grain.checkpoint.CheckpointRestore(fresh)
        manager.restore(10, args=ocp.args.Composite(data=data))
    for got, expected in zip(take(fresh, 5), want, strict=True):
        assert_same(got, expected)


def test_resuming_does_not_replay(encoded):
    source = TrainBatches(encoded, BATCH, 5, LONGEST)
    iterator = train_iterator(encoded, BATCH, 5, LONGEST)
    iterator.set_state({"next_index": 10**12 + 7})
    assert_same(next(iterator), source[10**12 + 7])


def test_processes_share_a_global_batch(encoded):
    whole = train_iterator(encoded, BATCH, 2, LONGEST)
    parts = [train_iterator(encoded, BATCH, 2, LONGEST, i, 4) for i in range(4)]
    for batch in take(whole, 14):
        pieces = [next(part) for part in parts]
        assert_same({k: np.concatenate([p[k] for p in pieces]) for k in KEYS}, batch)


def test_evaluation_has_every_row_once(encoded):
    batches = eval_batches(encoded, BATCH, LONGEST)
    assert len(batches) == 13
    labels = np.concatenate([b["labels"][b["weights"] == 1] for b in batches])
    assert sorted(labels.tolist()) == list(range(100))
    assert batches[-1]["weights"].tolist() == [1.0] * 4 + [0.0] * 4
    assert {b["input_ids"].shape[0] for b in batches} == {BATCH}
    rows = batches.plan.rows
    assert batches[3]["labels"].tolist() == rows[3].tolist() and (rows[-1] == FILLER).sum() == 4
    assert len(batches[:2]) == 2


def test_evaluation_over_processes(encoded):
    """The last process gets fillers only in the last batch, and still all 13 batches."""
    parts = [eval_batches(encoded, BATCH, LONGEST, i, 2) for i in range(2)]
    assert [len(part) for part in parts] == [13, 13]
    assert parts[1][-1]["weights"].tolist() == [0.0] * 4
    batches = [b for part in parts for b in part]
    labels = np.concatenate([b["labels"][b["weights"] == 1] for b in batches])
    assert sorted(labels.tolist()) == list(range(100))


def test_evaluation_may_be_smaller_than_a_batch(encoded):
    few = Encoded(encoded.input_ids[:3], None, encoded.lengths[:3], encoded.labels[:3])
    (batch,) = eval_batches(few, BATCH, LONGEST)
    assert batch["weights"].sum() == 3 and batch["input_ids"].shape[0] == BATCH


def test_given_buckets_are_used(encoded):
    iterator = train_iterator(encoded, BATCH, 0, LONGEST, buckets=(20, 48))
    assert {b["input_ids"].shape[1] for b in take(iterator, 12)} == {20, 48}


def test_errors_come_at_construction(encoded):
    with pytest.raises(UserError, match="100 rows do not fill one batch of 101"):
        train_iterator(encoded, 101, 0, LONGEST)
    with pytest.raises(UserError, match="do not fill one batch of 0"):
        train_iterator(encoded, 0, 0, LONGEST)
    with pytest.raises(UserError, match="batch size 8 is not divisible by 3 processes"):
        train_iterator(encoded, 8, 0, LONGEST, 0, 3)
    with pytest.raises(UserError, match="process 2 of 2"):
        process_slice(8, 2, 2)
    with pytest.raises(UserError, match="seed -1"):
        train_iterator(encoded, 8, -1, LONGEST)
    with pytest.raises(UserError, match=r"buckets .* are too short for a row of"):
        train_iterator(encoded, 8, 0, LONGEST, buckets=(8,))
    with pytest.raises(UserError, match="more than max_length 16"):
        train_iterator(encoded, 8, 0, 16)
    with pytest.raises(UserError, match="batch size 0"):
        eval_batches(encoded, 0, LONGEST)
