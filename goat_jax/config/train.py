"""The course of a run, and what is watched on the way."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

from goat_jax.errors import UserError
from goat_jax.validation.fields import Count, NonNegative, OneOf, Seed, check_fields


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The course of a run.

    Attributes:
        steps: optimizer steps.
        batch_size: examples per optimizer step, over all devices and micro-batches.
        accumulate: micro-batches a batch is cut into, to save memory.
        max_length: tokens per example; longer ones lose their end.
        shapes: padded lengths in use: more of them waste less on padding, but each is compiled.
        eval_batch_size: examples per evaluation step.
        eval_every: steps between evaluations; each is followed by a checkpoint.
        save_every: steps between checkpoints besides those.
        log_every: steps between records.
        patience: evaluations without a better score before the run stops early; None never stops.
        best_by: the metric that marks the best checkpoint; the task's first if None.
        grace_seconds: from SIGTERM or Ctrl-C to the end of the last save; after that the command
            line gives up with exit code 75.
        save_errors: "stop" ends the run when a checkpoint cannot be written (a full disk), keeping
            the one before; "continue" warns and tries again at the next, and fails only if the last
            cannot be written. Several processes always stop.
        changed_rows: "stop" refuses to continue a run whose data set has changed since it began;
            "accept" goes on with the rows as they are now, and run.json keeps both digests.
        seed: of the data's order, the head's and the adapters' start, and dropout.
    """

    steps: Count = 150
    batch_size: Count = 32
    accumulate: Count = 1
    max_length: Count = 128
    shapes: Count = 5
    eval_batch_size: Count = 64
    eval_every: Count = 100
    save_every: Count = 100
    log_every: Count = 10
    patience: Count | None = None
    best_by: str | None = None
    grace_seconds: NonNegative = 60.0
    save_errors: Annotated[str, OneOf(("stop", "continue"))] = "stop"
    changed_rows: Annotated[str, OneOf(("stop", "accept"))] = "stop"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "train.")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}"
            )


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """What is watched besides the records, which are always written.

    Attributes:
        utilization: whether records say which share of the devices' peak the matrix products reach;
            costs a second at the start.
        profile: "N:M" traces the steps N to M with `jax.profiler`, into the run folder; None traces
            none.
        wandb: name of the Weights & Biases project that gets a copy of the scalars (the extra
            `wandb`); None for none.
    """

    utilization: bool = True
    profile: str | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "watch.")
        self.profiled_steps()  # what is wrong is said before anything is loaded

    def profiled_steps(self) -> range:
        """The steps to trace, counted from 1.

        Raises:
            UserError: `profile` is not of the form N:M with 1 <= N <= M.

        >>> WatchConfig(profile="10:12").profiled_steps()
        range(10, 13)
        """
        if self.profile is None:
            return range(0)
        found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", self.profile)
        first, last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            raise UserError(
                f"watch.profile {self.profile!r} is not N:M, the first and the last step to trace"
            )
        return range(first, last + 1)
