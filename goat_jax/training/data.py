"""Reads, tokenizes and batches the rows of a run's task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.data.pipeline.batching import choose_buckets
from goat_jax.data.pipeline.dataset import Rows, with_known_ids
from goat_jax.data.pipeline.fingerprint import fingerprint as rows_fingerprint
from goat_jax.data.pipeline.loader import BatchIterator, eval_batches, train_iterator
from goat_jax.data.pipeline.overlap import note_of
from goat_jax.data.pipeline.token_ids import table_sizes
from goat_jax.data.pipeline.tokenize import late_tokenizer, load_tokenizer
from goat_jax.optim.optimizer import shortened_warmup
from goat_jax.pretrained.end_tokens import token_ids
from goat_jax.pretrained.resolve import find_model, open_checkpoint
from goat_jax.training.checks import check
from goat_jax.training.phase_change import check_phase_change
from goat_jax.training.shardings import process_shard, sharding_rules_of
from goat_jax.training.task_types import task_type_of
from goat_jax.typing import Batch, Tokenizer


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's rows as batches.

    Attributes:
        rows: the training rows.
        train: an endless, checkpointable iterator of this process's shard of the training batches.
        evaluation: the evaluation batches, which hold every row once.
        notes: one-line remarks about the rows and the run's length.
        config: the run's config, with the number of steps that the rows give.
        identity: split -> number and digest of its rows, for run.json.
        shares: the number of shards of a training batch; `train` yields one of them.
    """

    rows: Rows
    train: BatchIterator
    evaluation: Sequence[Batch]
    notes: tuple[str, ...]
    config: RunConfig
    identity: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    shares: int = 1


def load_data(config: RunConfig) -> TaskData:
    """Reads, tokenizes and batches the task's rows, and checks the config; reads no weights.

    Cheap checks come first: columns and labels, then the rest of the config (`check`), then tokens.

    Raises:
        UserError: rows that cannot be read, ids outside the model's tables, or anything else in
            the config that does not fit.
    """
    train, held_out = load_rows(config, "train", "evaluation")
    config = config.over(len(train))
    check_phase_change(config.adapter.spec().phases, config.train.total_steps)
    share = process_shard(sharding_rules_of(config), config.train.batch_size)
    notes = (
        describe("training", train),
        describe("held-out", held_out),
        note_of(train.marks, held_out.marks),
        *task_type_of(config.task).notes(config.task),
        shortened_warmup(config.optimizer, config.train.total_steps),
    )
    return TaskData(
        rows=train,
        train=training_batches(config, train, share),
        evaluation=evaluation_batches(config, held_out),
        notes=tuple(filter(None, notes)),
        config=config,
        identity={"training": identity_of(train), "held-out": identity_of(held_out)},
        shares=share[1],
    )


def identity_of(rows: Rows) -> dict[str, Any]:
    """Returns the number and the digest of some rows, as JSON."""
    return {"rows": len(rows), "sha256": rows_fingerprint(rows)}


def training_batches(
    config: RunConfig, rows: Rows, share: tuple[int, int] = (0, 1)
) -> BatchIterator:
    """Returns an endless, checkpointable iterator of batches, in the order of the run's seed.

    Args:
        config: the run's config.
        rows: the training rows.
        share: (index, count): the shard of each batch that is read.
    """
    train, buckets = config.train, training_buckets(config, rows)
    return train_iterator(
        rows,
        train.batch_size,
        train.seed,
        train.max_length,
        *share,
        buckets=buckets,
        threads=train.data_threads,
    )


def training_buckets(config: RunConfig, rows: Rows) -> tuple[int, ...]:
    """Returns the lengths that the training batches are padded to."""
    return _buckets(config, rows, config.train.batch_size)


def _buckets(config: RunConfig, rows: Rows, size: int) -> tuple[int, ...]:
    """Returns padded lengths of batches of `size` rows, which the mesh splits into equal parts."""
    train, parts = config.train, config.mesh.sequence
    parts = jax.device_count() if parts == -1 else parts
    return choose_buckets(
        rows.lengths,
        size,
        train.max_length,
        multiples=(math.lcm(8, parts), math.lcm(4, parts)),
        max_buckets=train.num_buckets,
    )


def load_rows(config: RunConfig, *splits: str) -> list[Rows]:
    """Reads the rows of some of the splits "train" and "evaluation", checked as in `load_data`.

    All splits are read before the model is looked up, which may mean a download, and before the
    first row is tokenized.
    """
    problem, task = task_type_of(config.task), config.task
    tokenizer = late_tokenizer(lambda: run_tokenizer(config.model))
    read = [problem.read(task, split, tokenizer) for split in splits]
    model_config = check(config)
    length = config.train.max_length
    rows = [
        problem.encode(task, split, each, tokenizer, length, config.model.path)
        for split, each in zip(splits, read, strict=True)
    ]
    sizes = table_sizes(model_config, config.adapter.spec().router)
    return [with_known_ids(each, sizes) for each in rows]


def run_tokenizer(model: ModelConfig) -> Tokenizer:
    """Loads the tokenizer of a run's model, with the tokens that the run adds."""
    return tokenizer_of(find_model(model.path), model.add_tokens)


def tokenizer_of(path: Path, add_tokens: Sequence[str] = ()) -> Tokenizer:
    """Loads a checkpoint's tokenizer, with further tokens, if given.

    If the tokenizer has no end-of-text token, it gets the first one that the checkpoint names.
    """
    tokenizer, ends = load_tokenizer(path, add_tokens), token_ids(open_checkpoint(path)[0])
    if tokenizer.eos_token_id is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    return tokenizer


def describe(what: str, rows: Rows) -> str:
    """Returns the number of rows in words, with how many were truncated or left out."""
    counts = {"cut short": rows.truncated, "left out": rows.dropped}
    lost = [f"{count:,} {how}" for how, count in counts.items() if count]
    return ", ".join([f"{len(rows):,} {what} rows", *lost])


def evaluation_batches(config: RunConfig, rows: Rows) -> Sequence[Batch]:
    """Returns every row once, in batches of the run's evaluation batch size."""
    size, length = config.train.eval_batch_size, config.train.max_length
    return eval_batches(rows, size, length, buckets=_buckets(config, rows, size))
