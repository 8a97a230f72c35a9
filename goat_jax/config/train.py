"""`TrainConfig` and `LoggingConfig`: settings of the training loop and of its monitoring."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Annotated, ClassVar

from goat_jax.errors import UserError
from goat_jax.validation.fields import Count, NonNegative, OneOf, Positive, Seed, check_fields

STEPS = 150
"""The number of optimizer steps of a config that gives neither steps nor epochs."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop.

    Attributes:
        steps: the number of optimizer steps; 150 if `epochs` is not given either.
        epochs: the number of passes over the training rows, in place of `steps`. The steps follow
            when the rows are read, and run.json keeps them.
        batch_size: examples per optimizer step, over all devices and micro-batches.
        grad_accum_steps: micro-batches per optimizer step, to save memory.
        max_length: the largest number of tokens per example; longer examples are truncated.
        num_buckets: the number of padded lengths; more of them waste less on padding, but each one
            is compiled.
        data_threads: the number of threads that prepare training batches ahead, which matters for
            images; the batches and their order do not depend on it.
        eval_batch_size: examples per evaluation step.
        eval_every: steps between evaluations; each is followed by a checkpoint.
        save_every: steps between additional checkpoints.
        log_every: steps between records of the metrics log.
        early_stopping_patience: evaluations without a better score before the run stops early;
            None never stops early.
        best_by: the metric that selects the best checkpoint; None is the task's first metric.
        grace_seconds: the time limit in seconds from SIGTERM or Ctrl-C to the end of the last save;
            after it, the command line exits with code 75.
        save_errors: the reaction to a checkpoint that cannot be written (a full disk). "stop" ends
            the run and keeps the checkpoint before; "continue" warns, tries again at the next
            checkpoint, and fails only if the last one cannot be written. Runs of several processes
            always stop.
        changed_rows: the reaction to a data set that has changed since the run began. "stop"
            refuses to continue the run; "accept" continues with the present rows, and run.json
            keeps both digests.
        seed: the seed of the data order, the initialization of head and adapters, and dropout.
    """

    steps: Count | None = None
    epochs: Positive | None = None
    batch_size: Count = 32
    grad_accum_steps: Count = 1
    max_length: Count = 128
    num_buckets: Count = 5
    data_threads: Count = 4
    eval_batch_size: Count = 64
    eval_every: Count = 100
    save_every: Count = 100
    log_every: Count = 10
    early_stopping_patience: Count | None = None
    best_by: str | None = None
    grace_seconds: NonNegative = 60.0
    save_errors: Annotated[str, OneOf(("stop", "continue"))] = "stop"
    changed_rows: Annotated[str, OneOf(("stop", "accept"))] = "stop"
    seed: Seed = 0

    ALTERNATIVES: ClassVar = {"steps": "epochs", "epochs": "steps"}
    """Fields that take the place of one another: an override of one removes the other."""

    def __post_init__(self) -> None:
        check_fields(self, "train.")
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"train.steps {self.steps} and train.epochs {self.epochs:g} are both given: "
                "give one of them"
            )
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"batch_size {self.batch_size} is not divisible by grad_accum_steps "
                f"{self.grad_accum_steps}"
            )

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps, once it is known (`over`)."""
        assert self.steps is not None, "the steps of the epochs are not known yet"
        return self.steps

    def over(self, rows: int) -> TrainConfig:
        """Returns the same settings with the number of steps that the epochs take over `rows` rows.

        An epoch is as many steps as the rows fill batches.

        >>> TrainConfig(epochs=3, batch_size=8).over(54).steps
        18
        """
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * max(1, rows // self.batch_size))
        return dataclasses.replace(self, steps=steps, epochs=None)


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Settings of monitoring besides the metrics log, which is always written.

    Attributes:
        utilization: whether to log the fraction of the devices' peak FLOP/s that the matrix
            products reach; this takes a second at the start.
        profile: the steps to trace with `jax.profiler` into the run folder, "N:M" for N to M; None
            traces no step.
        wandb: the name of the Weights & Biases project that gets a copy of the scalars (the extra
            `wandb`); None for no copy.
        trackio: the name of the Trackio project that gets one (the extra `trackio`), likewise.
        mlflow: the name of the MLflow experiment that gets one (the extra `mlflow`), likewise.
    """

    utilization: bool = True
    profile: str | None = None
    wandb: str | None = None
    trackio: str | None = None
    mlflow: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "logging.")
        self.profiled_steps()  # so that errors come before anything is loaded

    def profiled_steps(self) -> range:
        """Returns the steps to trace, counted from 1; an empty range if `profile` is None.

        Raises:
            UserError: `profile` is not of the form N:M with 1 <= N <= M.

        >>> LoggingConfig(profile="10:12").profiled_steps()
        range(10, 13)
        """
        if self.profile is None:
            return range(0)
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", self.profile)
        first, last = map(int, match.groups()) if match else (0, 0)
        if not 1 <= first <= last:
            raise UserError(
                f"logging.profile {self.profile!r} is not N:M, the first and last step to trace"
            )
        return range(first, last + 1)
