"""Several processes as one run: joining them, letting one speak for all, stopping together.

Every process runs the same program on its own devices and its own rows; jax connects them. All of
them see the same files (a shared folder), and only the first writes what is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from goat_jax.config.run import RunConfig, flatten
from goat_jax.errors import UserError
from goat_jax.training.distributed.lifeline import PLACE, Lifeline
from goat_jax.training.logging.metrics_log import Records
from goat_jax.training.logging.writers import Mirror, TensorBoard, WeightsAndBiases


@dataclasses.dataclass(frozen=True)
class Processes:
    """Where a process stands among those of a run.

    Attributes:
        coordinator: HOST:PORT on which the first process listens, or "auto" where jax knows the
            cluster by itself (SLURM, Cloud TPU, GKE, Open MPI).
        count: how many there are; None for "auto".
        index: which one this is, from 0; None for "auto".

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
                raise UserError("coordinator auto finds count and index itself: leave them out")
            return
        if ":" not in self.coordinator:
            raise UserError(f"coordinator {self.coordinator!r} is not HOST:PORT: add the port")
        if self.count is None or self.index is None:
            raise UserError("a coordinator needs the number of processes and this one's index")
        if not 0 <= self.index < self.count:
            raise UserError(f"process {self.index} of {self.count}: the index counts from 0")


def join(processes: Processes, timeout: int = 300) -> Lifeline:
    """Connects this process with the others, before jax is used for anything else.

    On CPUs they exchange numbers by gloo. From here on the end of one ends all (`lifeline`).

    Args:
        timeout: seconds to wait for the others.

    Raises:
        UserError: they did not come, or jax has started already.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # A run has its own way to end at a signal (`signals`); jax's would only report, in lines of
    # C++, that the first process cannot be reached.
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
            f"the processes could not be joined by {processes.coordinator} ({reason}): start all "
            "of them, with one address, within the time"
        ) from error
    return _lifeline(timeout)


def _lifeline(timeout: int) -> Lifeline:
    """This process's lifeline; one that knows nobody where no connection can be made, since then
    jax's own heartbeats are left."""
    from jax._src import distributed  # its store has no public name

    state: Any = distributed.global_state
    lifeline = Lifeline(state.process_id)
    if state.process_id == 0:
        state.client.key_value_set(PLACE, lifeline.listen())
    else:
        told = state.client.blocking_key_value_get(PLACE, timeout * 1000)
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        with contextlib.suppress(OSError):
            lifeline.connect(host, told)
    return lifeline


def as_one(processes: Processes, action: Callable[[], int]) -> int:
    """Runs an action as one of several processes; if it fails in one, all of them end.

    Args:
        action: returns the exit code; below 128 it says that the action failed and has said why.
    """
    lifeline = join(processes)
    try:
        code = action()
    except Exception:
        # Most likely another process has died under a collective; who it was is the better line.
        lifeline.wait(LOST_SECONDS)
        traceback.print_exc()
        lifeline.fail(1)
    if 0 < code < FIRST_SIGNAL:
        lifeline.fail(code)
    lifeline.done()
    return code


FIRST_SIGNAL = 128
"""Exit codes from here on stand for signals, after which all processes have saved."""

LOST_SECONDS = 10.0
"""How long a process whose collective failed waits for its lifeline to say why."""


def is_first() -> bool:
    """Whether this process speaks for the run."""
    return jax.process_index() == 0


def agreed(first_process_is_fine: bool) -> bool:
    """What the first process found, told to all; every process has to call it."""
    if jax.process_count() == 1:
        return first_process_is_fine
    from jax.experimental import multihost_utils

    told = multihost_utils.broadcast_one_to_all(np.int32(first_process_is_fine))
    return bool(told)


def by_first(action: Callable[[], Any]) -> None:
    """Does something in the first process; the others wait, and go on only if it succeeded.

    Raises:
        UserError: in every process, if the first one raised it.
    """
    refused: UserError | None = None
    if is_first():
        try:
            action()
        except UserError as error:
            refused = error
    if not agreed(refused is None):
        raise refused or UserError("the first process was refused: see its message")


class Votes:
    """Lets all processes stop after the same step, when any of them was told to.

    A vote is a small reduction on the devices that is looked at one step later, so nobody waits.
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
        """Votes after a step; whether all are to stop now, by the votes after the step before."""
        if not self._several:
            return stop
        before, shape = self._pending, (len(jax.devices()),)
        mine = np.full((1,), stop, np.int32)
        votes = jax.make_array_from_callback(shape, self._each, lambda _: mine)
        self._pending = self._any(votes)
        return before is not None and bool(before)


class NoRecords(Records):
    """For the processes that write no records."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was opened."""

    def write(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        """The record, written nowhere."""
        return {"kind": kind, "step": step, **values}

    def resume(self, step: int) -> None:
        """Leaves the file to the first process."""


def records_of(config: RunConfig) -> Records:
    """The records of a run for this process: written by the first, by nobody else."""
    folder = Path(config.out)
    if not is_first():
        return NoRecords(folder)
    mirrors: list[Mirror] = [TensorBoard(folder)]
    if config.watch.wandb is not None:
        folder.mkdir(parents=True, exist_ok=True)
        mirrors.append(WeightsAndBiases(folder, config.watch.wandb, flatten(config)))
    return Records(folder, mirrors)
