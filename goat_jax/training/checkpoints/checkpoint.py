"""Orbax checkpoints of a run's state and data iterator, without the frozen base.

A checkpoint is complete or it does not exist. Orbax writes to a temporary folder and renames it, so
a process that is killed at any moment leaves the last complete checkpoint to restart from. A
checkpoint that is damaged later is detected by its checksums (`checkpoints.checksums`) and skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.path import atomicity

from goat_jax.data.metrics import goodness
from goat_jax.data.pipeline.loader import Positioned
from goat_jax.errors import Notice, RunFailed, UserError
from goat_jax.training.checkpoints.checksums import MARK, damage_of, write_checksums
from goat_jax.training.checkpoints.damaged import move_damaged
from goat_jax.training.checkpoints.plain_state import plain_state, restore_args, state_of
from goat_jax.training.checkpoints.steps import CHECKPOINTS, best_of
from goat_jax.training.distributed.processes import by_first, is_first
from goat_jax.training.state import RunState

DELETED = ".deleted"
"""Folder to which checkpoints are moved before they are deleted.

A process killed during the deletion must not leave half of a checkpoint under its step's name.
"""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Content of a checkpoint.

    Attributes:
        state: the run's state.
        notes: the small JSON values saved with it.
    """

    state: RunState
    notes: dict[str, Any]


class CheckedPath(atomicity.AtomicRenameTemporaryPath):
    """Orbax temporary folder that gets its checksums last, just before it is renamed."""

    async def finalize(self) -> None:
        """Completes the folder, writes its checksums and renames it to its final name."""
        final = self.get_final()
        if not final.name.isdigit():  # an item of a checkpoint: the checkpoint has the checksums
            await super().finalize()
            return
        # Orbax writes its last files, the time stamp among them, in the same call that renames.
        # So let it rename to another temporary name, then write checksums over the complete folder
        # and rename it here.
        complete = final.with_name(f"{final.name}{atomicity.TMP_DIR_SUFFIX}-complete")
        shutil.rmtree(complete, ignore_errors=True)  # an earlier attempt may have left one
        self._final_path = complete
        await super().finalize()
        self._final_path = final
        write_checksums(Path(complete), int(final.name))
        complete.rename(final)


@dataclasses.dataclass(frozen=True)
class LatestAndBest(ocp.checkpoint_managers.preservation_policy.PreservationPolicy):
    """Preservation policy that keeps the latest checkpoints and the best one.

    Among equals it keeps the first; Orbax's `BestN` would keep the last.

    Attributes:
        latest: the number of latest checkpoints that are kept.
        best_by: the metric that defines the best checkpoint.
    """

    latest: int
    best_by: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Returns True for each checkpoint to keep; they are in the order of their steps."""
        del context
        scored = [info for info in checkpoints if info.metrics and self.best_by in info.metrics]
        best = best_of({info.step: info.metrics[self.best_by] for info in scored}, self.best_by)
        latest = {info.step for info in checkpoints[-self.latest :]}
        return [info.step in latest or info.step == best for info in checkpoints]


@contextlib.contextmanager
def _without_remark() -> Iterator[None]:
    """Keeps Orbax from warning that a directory opened for reading is one for reading."""
    logger = logging.getLogger("absl")

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Given directory is read only")

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


class Checkpoints:
    """Checkpoints of one run folder: the latest two, and the best by a metric.

    An evaluation's scores are saved as the Orbax metrics of the checkpoint that follows it, so they
    are on disk with it, where `orbax.checkpoint.CheckpointManager` reads them.

    Args:
        folder: the run folder.
        best_by: the evaluation metric whose best value defines the best checkpoint.
        keep: the number of latest checkpoints that are kept besides the best.
        read_only: whether the checkpoints are only read. Nothing is then cleaned up, so another
            process may be training in the folder.
        keep_going: whether `save` only warns if a checkpoint could not be written; `wait` raises in
            any case. It has no effect in a multi-process run, where all processes have to agree.
    """

    def __init__(
        self,
        folder: Path,
        best_by: str,
        *,
        keep: int = 2,
        read_only: bool = False,
        keep_going: bool = False,
    ):
        self.best_by, self._keep_going = best_by, keep_going and jax.process_count() == 1
        self._options = ocp.CheckpointManagerOptions(
            # Without a best_fn Orbax writes no metrics.
            best_fn=lambda scores: goodness(best_by, scores[best_by]),
            preservation_policy=LatestAndBest(keep, best_by),
            enable_async_checkpointing=True,
            temporary_path_class=CheckedPath,
            cleanup_tmp_directories=not read_only,  # what killed processes left
            todelete_subdir=None if read_only else DELETED,
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,  # otherwise Orbax warns that it sets it
            lightweight_initialize=read_only,  # a reader loads the scores that it needs later
        )
        root = (Path(folder) / CHECKPOINTS).absolute()
        if read_only and not root.is_dir():
            raise UserError(f"{folder} has no checkpoints: train it first")
        self._root = root
        if not read_only:
            self._delete()
            by_first(lambda: move_damaged(root))
        with _without_remark():
            self._manager = ocp.CheckpointManager(root, options=self._options)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps that have checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def damage(self, step: int, thorough: bool = True) -> str | None:
        """Describes a checkpoint's damage (`damage_of`); None if it is intact."""
        return damage_of(self._root / str(step), step, thorough)

    def scores(self) -> dict[int, float]:
        """Returns step -> score by `best_by`, of the checkpoints that have one on disk."""
        whole = [step for step in self.all_steps() if not self.damage(step, thorough=False)]
        by_step = {step: self._metrics(step).get(self.best_by) for step in whole}
        return {step: score for step, score in by_step.items() if isinstance(score, int | float)}

    def _metrics(self, step: int) -> dict[str, Any]:
        try:
            metrics = self._manager.metrics(step)
        except (ValueError, OSError):  # damaged, or deleted by the process that trains
            metrics = None
        return metrics if isinstance(metrics, dict) else {}

    def best_step(self) -> int | None:
        """Returns the step with the best score, the first of equals; None if none has a score."""
        return best_of(self.scores(), self.best_by)

    def save(
        self,
        state: RunState,
        data: Positioned,
        notes: dict[str, Any],
        scores: dict[str, float] | None,
    ) -> None:
        """Starts writing a checkpoint and returns, so that training continues meanwhile.

        Args:
            state: the run's state; it is copied, so it may be donated to the next step at once.
            data: the grain iterator of training batches. Its position is one number, the same in
                all processes, however many there are.
            notes: small JSON values to save with the state.
            scores: the scores of an evaluation at this step; None without one.

        Raises:
            RunFailed: a checkpoint could not be written, unless `keep_going` was set.
        """
        # JSON has no NaN; without a finite score by `best_by` a checkpoint can never be the best.
        metrics = {name: value for name, value in (scores or {}).items() if math.isfinite(value)}
        # Copied, since on a CPU Orbax reads the very memory that the next step may reuse.
        copied = jax.tree.map(jnp.copy, plain_state(state))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(copied),
            data=ocp.args.JsonSave(data.get_state()),
            notes=ocp.args.JsonSave(notes),
        )
        # Wait for the previous checkpoint first, so that its error is not taken for this one's.
        self._attempt(lambda: self._manager.wait_until_finished())
        self._delete()
        step = int(state.step)
        kept = metrics if self.best_by in metrics else None
        self._attempt(
            lambda: self._manager.save(
                step, args=items, metrics=kept, force=True, custom_metadata=MARK
            )
        )

    def restore(self, like: RunState, data: Any | None, step: int | None = None) -> Restored:
        """Reads a checkpoint into the shapes, dtypes and shardings of a freshly made state.

        Args:
            like: a state of the same run; the values of its arrays do not matter. If it has no
                optimizer state, the checkpoint's is not read.
            data: the grain iterator to set to the saved position; None to skip it.
            step: the checkpoint's step; the latest if None.

        Raises:
            UserError: there is no checkpoint, it cannot be read, or it does not fit this run.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise UserError(f"{self._manager.directory} holds no complete checkpoint")
        items: dict[str, Any] = {"state": restore_args(like), "notes": ocp.args.JsonRestore()}
        if data is not None:
            items["data"] = ocp.args.JsonRestore()
        where = f"{self._manager.directory}/{step}"
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises many types, depending on what is damaged
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{where} cannot be read or does not fit this run's settings ({reason}): use "
                "another run folder, or move it away to continue from the checkpoint before"
            ) from error
        if int(restored["state"]["step"]) != step:
            raise UserError(f"{where} is the checkpoint of step {int(restored['state']['step'])}")
        if data is not None:
            _set_position(data, restored["data"], where)
        return Restored(state_of(restored["state"], like), restored["notes"])

    def wait(self) -> None:
        """Waits until everything started has been written.

        Raises:
            RunFailed: a checkpoint could not be written.
        """
        with self._as_run_failed():
            self._manager.wait_until_finished()
        self._delete()

    def close(self) -> None:
        """Waits for the last checkpoint and closes Orbax's manager.

        Raises:
            RunFailed: a checkpoint could not be written.
        """
        with self._as_run_failed():
            self._manager.close()
        self._delete()

    def _delete(self) -> None:
        """Deletes the checkpoints that Orbax has moved to `DELETED`."""
        if not self._options.read_only and is_first():
            shutil.rmtree(self._root / DELETED, ignore_errors=True)

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Calls an action; with `keep_going`, a failure to write becomes a warning."""
        try:
            with self._as_run_failed():
                action()
        except RunFailed as failure:
            if not self._keep_going:
                raise
            warnings.warn(f"the run continues, but {failure}", Notice, stacklevel=3)
            with contextlib.suppress(ValueError, OSError):
                self._manager.close()
            # The old manager still lists the checkpoint that failed, so make a new one.
            self._manager = ocp.CheckpointManager(self._root, options=self._options)

    @contextlib.contextmanager
    def _as_run_failed(self) -> Iterator[None]:
        """Turns errors while writing, often long after `save` returned, into one `RunFailed`."""
        try:
            yield
        except (ValueError, OSError) as error:
            reason = str(error).split("; ")[-1] if "; " in str(error) else str(error)
            whole = [step for step in self.all_steps() if (self._root / str(step)).is_dir()]
            kept = f"the checkpoint of step {whole[-1]} is kept" if whole else "none is kept"
            short = " ".join(reason.split())[:160]
            raise RunFailed(
                f"a checkpoint could not be written to {self._root} ({short}); {kept}: "
                "free some space and start the same command again"
            ) from error


def _set_position(data: Positioned, position: object, where: str) -> None:
    """Sets a data iterator to a saved position."""
    try:
        if not _alike(position, data.get_state()):
            raise ValueError("its structure differs")
        data.set_state(position)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: the saved position in the data cannot be restored ({reason}): move this "
            "checkpoint away to continue from the one before"
        ) from error


def _alike(value: object, other: object) -> bool:
    """True if two JSON values have the same keys and types, and the first no negative number."""
    if isinstance(other, dict):
        if not isinstance(value, dict) or value.keys() != other.keys():
            return False
        return all(_alike(value[name], other[name]) for name in other)
    return type(value) is type(other) and not (isinstance(value, int | float) and value < 0)
