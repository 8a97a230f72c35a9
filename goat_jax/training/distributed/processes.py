"""Multi-process runs: joining the processes, acting in the first one only, stopping together.

Every process runs the same program on its local devices and its shard of the rows; jax connects
them. All of them see the same files (a shared folder). Only the first process writes files other
than checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, SupportsInt

import jax
import numpy as np

from goat_jax.config.fields import flatten
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.extras import skipped_without_extra
from goat_jax.training.distributed.lifeline import PLACE, Lifeline
from goat_jax.training.logging.metrics_log import MetricsLog
from goat_jax.training.logging.writers import TRACKERS, MetricWriter, TensorBoard


@dataclasses.dataclass(frozen=True)
class Processes:
    """Position of a process among those of a run.

    Attributes:
        coordinator: the HOST:PORT on which the first process listens, or "auto" where jax detects
            the cluster (SLURM, Cloud TPU, GKE, Open MPI).
        count: the number of processes; None for "auto".
        index: the index of this process, from 0; None for "auto".

    Raises:
        UserError: a part is missing or out of range.

    >>> Processes("node0:1234", 2, 2)
    Traceback (most recent call last):
    goat_jax.errors.UserError: process 2 of 2: the index counts from 0
    """

    coordinator: str
    count: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if self.coordinator == "auto":
            if self.count is not None or self.index is not None:
                raise UserError(
                    "coordinator auto finds the number of processes and the index: leave them out"
                )
            return
        if ":" not in self.coordinator:
            raise UserError(f"coordinator {self.coordinator!r} is not valid: give HOST:PORT")
        if self.count is None or self.index is None:
            raise UserError("--coordinator needs --processes and --process")
        if not 0 <= self.index < self.count:
            raise UserError(f"process {self.index} of {self.count}: the index counts from 0")


def join(processes: Processes, timeout: int = 300) -> Lifeline:
    """Connects this process with the others; it must come before any other use of jax.

    On CPUs the collectives use gloo. From then on the end of one process ends all (`lifeline`).

    Args:
        processes: the position of this process.
        timeout: the seconds to wait for the others.

    Raises:
        UserError: the others did not join in time, or jax has started already.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # `preemption.Signals` handles signals. The preemption service of jax would only add C++ log
    # lines that the first process cannot be reached.
    jax.config.update("jax_enable_preemption_service", False)
    named = processes.coordinator != "auto"
    try:
        jax.distributed.initialize(
            coordinator_address=processes.coordinator if named else None,
            num_processes=processes.count,
            process_id=processes.index,
            initialization_timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes could not be connected through {processes.coordinator} ({reason}): "
            "start all of them with the same address within the timeout"
        ) from error
    return _lifeline(timeout)


def _lifeline(timeout: int) -> Lifeline:
    """Makes this process's lifeline, connected to the others.

    If the connection fails, the lifeline has no connections, and only jax's heartbeats remain.
    """
    from jax._src import distributed  # its store has no public name

    state: Any = distributed.global_state
    lifeline = Lifeline(state.process_id)
    if state.process_id == 0:
        state.client.key_value_set(PLACE, lifeline.listen())
    else:
        received = state.client.blocking_key_value_get(PLACE, timeout * 1000)
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        with contextlib.suppress(OSError):
            lifeline.connect(host, received)
    return lifeline


def as_one(processes: Processes, action: Callable[[], int]) -> int:
    """Runs an action as one of several processes; if it fails in one, all of them end.

    Args:
        processes: the position of this process.
        action: a function that returns the exit code. A code from 1 to 127 means that the action
            failed and has printed why.

    Returns:
        The exit code: 0, or 128 and above after a signal.
    """
    lifeline = join(processes)
    try:
        code = action()
    except Exception:
        # Most likely another process died during a collective. The lifeline then names it, which
        # helps more than this traceback.
        lifeline.wait(LOST_SECONDS)
        traceback.print_exc()
        lifeline.fail(1)
    if 0 < code < FIRST_SIGNAL:
        lifeline.fail(code)
    lifeline.done()
    return code


FIRST_SIGNAL = 128
"""Smallest exit code that stands for a signal, after which all processes have saved."""

LOST_SECONDS = 10.0
"""Seconds that a process whose collective failed waits for its lifeline to name the cause."""


def is_first() -> bool:
    """True in the process that prints and writes for the run."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """Broadcasts the first process's number to all; every process has to call it."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def by_first(action: Callable[[], Any]) -> None:
    """Calls an action in the first process; the others wait and continue only if it succeeds.

    Raises:
        UserError: in every process, if the first one raised it.
    """
    refused: UserError | None = None
    if is_first():
        try:
            action()
        except UserError as error:
            refused = error
    if not from_first(refused is None):
        raise refused or UserError("the first process stopped with an error: see its message")


class StopConsensus:
    """Consensus of all processes to stop after the same step, once any of them votes to.

    A vote is a small reduction on the devices, so every process has to vote after every step. The
    result is read one step later, so no process waits for it.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._pending: Any = None
        if self._several:
            mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
            spec = jax.sharding.PartitionSpec
            self._each = jax.sharding.NamedSharding(mesh, spec("all"))
            whole = jax.sharding.NamedSharding(mesh, spec())
            self._any = jax.jit(lambda votes: votes.max(), out_shardings=whole)

    def cast(self, stop: bool) -> bool:
        """Casts this process's vote after a step.

        Returns:
            True if all processes have to stop now, according to the votes of the previous step.
        """
        if not self._several:
            return stop
        before, shape = self._pending, (len(jax.devices()),)
        vote = np.full((1,), stop, np.int32)
        votes = jax.make_array_from_callback(shape, self._each, lambda _: vote)
        self._pending = self._any(votes)
        return before is not None and bool(before)


class NoMetricsLog(MetricsLog):
    """Metrics log that writes nothing, for all processes but the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Does nothing: no file was opened."""

    def write(self, kind: str, step: SupportsInt, **values: Any) -> dict[str, Any]:
        """Returns the record without writing it."""
        return {"kind": kind, "step": int(step), **values}

    def resume(self, step: int) -> None:
        """Leaves the file to the first process."""


def records_of(config: RunConfig) -> MetricsLog:
    """Returns the run's metrics log; only the first process's log writes anything."""
    folder = Path(config.out)
    if not is_first():
        return NoMetricsLog(folder)
    writers: list[MetricWriter] = []
    with skipped_without_extra("TensorBoard files"):
        writers.append(TensorBoard(folder))
    for name, tracker in TRACKERS.items():
        project = getattr(config.logging, name)
        if project is not None:
            folder.mkdir(parents=True, exist_ok=True)
            writers.append(tracker(folder, project, flatten(config)))
    return MetricsLog(folder, writers)
