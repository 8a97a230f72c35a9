"""Batches for training, as a checkpointable grain iterator, and for evaluation.

Element i of the training stream is batch i: its epoch and its rows depend on i alone. The
iterator's state is therefore one number, and resuming costs nothing and gives the same batches,
whatever was prefetched when the state was saved.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol, overload

from goat_jax.data.pipeline.batching import (
    BatchPlan,
    choose_buckets,
    epoch_plan,
    evaluation_plan,
)
from goat_jax.data.pipeline.dataset import Batch, Rows
from goat_jax.errors import UserError

AHEAD = 4
"""Least number of batches that are prepared ahead."""


def batches_per_epoch(rows: Rows, batch_size: int) -> int:
    """Returns the number of full batches in one epoch; raises UserError if there is none.

    >>> import numpy as np
    >>> from goat_jax.data.pipeline.tokenize import Encoded
    >>> data = Encoded([np.array([4])] * 5, None, np.ones(5, int), np.zeros(5, int))
    >>> batches_per_epoch(data, 2)
    2
    """
    if not 1 <= batch_size <= len(rows):
        raise UserError(
            f"{len(rows)} rows do not fill one batch of {batch_size}: choose 1 to {len(rows)}"
        )
    return len(rows) // batch_size


def process_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the positions of a global batch that one process loads: contiguous, equal parts.

    Raises UserError if the processes cannot have equal parts.

    >>> process_slice(8, process_index=1, process_count=2)
    slice(4, 8, None)
    """
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count}: the index counts from 0")
    if batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} is not divisible by {process_count} processes:"
            f" choose a multiple of {process_count}"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


class TrainBatches:
    """Endless training stream as a random-access source: `source[i]` is batch i.

    Attributes:
      per_epoch: the number of batches in an epoch; batch i belongs to epoch `i // per_epoch`.
      buckets: the padded lengths in use.
      plan: epoch -> its `BatchPlan`, cached.

    >>> import numpy as np
    >>> from goat_jax.data.pipeline.tokenize import Encoded
    >>> data = Encoded([np.array([4])] * 5, None, np.ones(5, int), np.zeros(5, int))
    >>> stream = TrainBatches(data, batch_size=2, seed=0, max_length=8)
    >>> stream.per_epoch, stream.buckets, stream[7]["input_ids"].shape
    (2, (8,), (2, 8))
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        max_length: int,
        process_index: int = 0,
        process_count: int = 1,
        buckets: Sequence[int] | None = None,
    ) -> None:
        self.per_epoch = batches_per_epoch(rows, batch_size)
        if seed < 0:
            raise UserError(f"seed {seed}: give 0 or more")
        lengths = rows.lengths
        self.buckets = tuple(buckets or choose_buckets(lengths, batch_size, max_length))
        self._rows, self._seed = rows, seed
        self._places = process_slice(batch_size, process_index, process_count)
        plan = partial(epoch_plan, lengths, batch_size, seed, buckets=self.buckets)
        # Two epochs: prefetching threads are already in the next one near an epoch's end.
        self.plan = lru_cache(maxsize=2)(plan)
        self.plan(0)  # buckets that do not fit must fail here, not in a prefetching thread

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        epoch, number = divmod(int(index), self.per_epoch)
        plan = self.plan(epoch)
        numbers, length = plan.rows[number, self._places], int(plan.lengths[number])
        return self._rows.gather(numbers, length, (self._seed, int(index)))


class Positioned(Protocol):
    """An iterator whose position can be saved and set."""

    def get_state(self) -> Any:
        """Returns the position as JSON values."""
        ...

    def set_state(self, state: Any, /) -> None:
        """Moves to a position that `get_state` returned."""
        ...


class BatchIterator(Positioned, Iterator[Batch], Protocol):
    """An endless iterator of batches whose position can be saved, such as grain's."""


def train_iterator(
    rows: Rows,
    batch_size: int,
    seed: int,
    max_length: int,
    process_index: int = 0,
    process_count: int = 1,
    buckets: Sequence[int] | None = None,
    *,
    threads: int = 4,
) -> BatchIterator:
    """Returns an endless iterator of training batches that Orbax can save and restore.

    Args:
      rows: the dataset.
      batch_size: the global batch size B; a process gets B / process_count rows of each batch.
      seed: the seed of the order of all epochs and of random crops.
      max_length: the longest padded length allowed.
      process_index: this process's index, as `jax.process_index()` gives it.
      process_count: the number of processes, as `jax.process_count()` gives it.
      buckets: the padded lengths; chosen from the data if None.
      threads: the number of threads that prepare batches ahead, each one batch at a time.

    The batches are those of `gather`. `get_state()` / `set_state()` carry one number, which
    `grain.checkpoint.CheckpointSave` / `CheckpointRestore` store in an Orbax checkpoint. A state
    gives the same batches only with the same data, batch size, seed and buckets.

    >>> import numpy as np
    >>> from goat_jax.data.pipeline.tokenize import Encoded
    >>> data = Encoded([np.array([4])] * 5, None, np.ones(5, int), np.zeros(5, int))
    >>> batches = train_iterator(data, batch_size=2, seed=0, max_length=8)
    >>> next(batches)["weights"].tolist()
    [1.0, 1.0]
    """
    import grain

    source = TrainBatches(rows, batch_size, seed, max_length, process_index, process_count, buckets)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, AHEAD))
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


class EvalBatches(Sequence[Batch]):
    """Sequence of evaluation batches, collated on access, with every row once.

    Attributes:
      plan: the plan; `plan.rows[i]` are the row numbers of global batch i (-1 for a filler).

    >>> import numpy as np
    >>> from goat_jax.data.pipeline.tokenize import Encoded
    >>> data = Encoded([np.array([4])] * 3, None, np.ones(3, int), np.zeros(3, int))
    >>> [batch["weights"].tolist() for batch in eval_batches(data, 2, max_length=8)]
    [[1.0, 1.0], [1.0, 0.0]]
    """

    def __init__(self, rows: Rows, plan: BatchPlan, places: slice) -> None:
        self.plan = plan
        self._rows = rows
        self._places = places

    def __len__(self) -> int:
        return len(self.plan)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        numbers, length = self.plan.rows[index], int(self.plan.lengths[index])
        return self._rows.gather(numbers[self._places], length)


def eval_batches(
    rows: Rows,
    batch_size: int,
    max_length: int,
    process_index: int = 0,
    process_count: int = 1,
    buckets: Sequence[int] | None = None,
) -> EvalBatches:
    """Returns all rows in batches of one size, sorted by length; fillers have weight 0.

    The arguments are those of `train_iterator`. A process whose part of the last batch is only
    fillers still gets that batch, since all processes must run the same steps.
    """
    places = process_slice(batch_size, process_index, process_count)
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: give 1 or more")
    sizes = tuple(buckets or choose_buckets(rows.lengths, batch_size, max_length))
    return EvalBatches(rows, evaluation_plan(rows.lengths, batch_size, sizes), places)
