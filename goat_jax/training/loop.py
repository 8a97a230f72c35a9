"""The training loop: takes steps, evaluates, records and saves."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.data.metrics import goodness
from goat_jax.errors import RunFailed, UserError
from goat_jax.training.data import TaskData
from goat_jax.training.distributed.preemption import Signals
from goat_jax.training.distributed.processes import StopConsensus
from goat_jax.training.evaluate import evaluate
from goat_jax.training.logging.metrics_log import MetricsLog
from goat_jax.training.logging.mfu import StepFlops, peak_of_devices
from goat_jax.training.logging.norms import norms_by_module, not_finite
from goat_jax.training.logging.profiler import Profile
from goat_jax.training.logging.progress_bar import TrainProgress
from goat_jax.training.logging.summary import Summary
from goat_jax.training.logging.throughput import Meter, memory_peaks
from goat_jax.training.setup import TrainSetup
from goat_jax.training.state import RunState
from goat_jax.training.task_types import task_type_of
from goat_jax.typing import Batch

# Importing Orbax takes a fifth of the start-up time; `fit` does it once the config is checked.
if TYPE_CHECKING:
    from goat_jax.training.checkpoints.checkpoint import Checkpoints


@dataclasses.dataclass
class Best:
    """Best evaluation so far, by `goodness`, for early stopping.

    It is saved with every checkpoint, so that the patience counter survives a restart. It does not
    select the best checkpoint, because only checkpoints on disk count for that
    (`Checkpoints.best_step`).

    Attributes:
        step: the best evaluation's step; -1 before the first.
        score: the best evaluation's `goodness`.
        worse: the number of evaluations since then that were no better.
    """

    step: int = -1
    score: float = -math.inf
    worse: int = 0

    def add(self, step: int, score: float) -> None:
        """Counts an evaluation; a score that is not finite counts as no better."""
        if math.isfinite(score) and score > self.score:
            self.step, self.score, self.worse = step, score, 0
        else:
            self.worse += 1


def from_notes(notes: Any, step: int, folder: str) -> tuple[Best, dict | None, dict]:
    """Returns the best evaluation, the first scores and the last ones from a checkpoint's notes."""
    try:
        best = Best(*(notes["best"][name] for name in ("step", "score", "worse")))
        before, after = notes["before"], notes["after"]
        numbers = [best.step, best.score, best.worse, *(before or {}).values(), *after.values()]
        if not all(isinstance(each, int | float) for each in numbers):
            raise TypeError("a value is not a number")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the notes in the checkpoint of step {step} in {folder} are not valid ({error}): "
            "move it away to continue from the checkpoint before"
        ) from error
    return best, before, after


class Loop:
    """Training loop: the state that `fit` keeps between steps, and the actions on it.

    Attributes:
        step: the number of optimizer steps done.
        saved: the step of the last checkpoint.
        before: the scores at step 0.
        after: the scores of the last evaluation.
        pending: step, metrics, batch and FLOPs (done, model's) of the last step, whose numbers are
            not fetched yet.
    """

    def __init__(
        self,
        config: RunConfig,
        setup: TrainSetup,
        data: TaskData,
        records: MetricsLog,
        checkpoints: Checkpoints,
    ):
        self.config, self.setup, self.data = config, setup, data
        self.records, self.checkpoints, self.best_by = records, checkpoints, config.best_by
        self.unit = task_type_of(config.task).unit
        self.state: RunState = setup.state
        self.step = self.saved = 0
        self.best = Best()
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] = {}
        self.pending: tuple[int, dict[str, Any], Batch, tuple[int, int]] | None = None
        self.meter = Meter(self.unit, data.shares)
        self.flops = (
            StepFlops(setup.train_step, setup.model_step) if config.logging.utilization else None
        )
        self.bar: TrainProgress
        self.profile: Profile

    def restore(self) -> None:
        """Restores the newest checkpoint and drops the records written after it.

        Without a checkpoint the run starts from step 0 with no records.
        """
        step = self.checkpoints.latest_step()
        self.records.resume(-1 if step is None else step)
        if step is None:
            return
        restored = self.checkpoints.restore(self.state, self.data.train, step)
        self.state, self.step, self.saved = restored.state, step, step
        self.best, self.before, self.after = from_notes(restored.notes, step, self.config.out)

    def run(self, signals: Signals) -> Summary:
        """Takes the remaining steps; stops early on a signal or when patience runs out."""
        train = self.config.train
        if self.before is None:
            self.before = self.evaluate()
        stopped = "finished"
        # A new meter, so that the start-up and the first evaluation do not count as training time.
        self.meter = Meter(self.unit, self.data.shares, self.peak())
        consensus = StopConsensus()
        while self.step < train.total_steps:
            if self.out_of_patience():
                stopped = (
                    f"no better {self.best_by} for {train.early_stopping_patience} evaluations"
                )
                break
            self.take_step()
            if consensus.cast(bool(signals.caught)):
                stopped = signals.caught or signal.SIGTERM.name
                break
        if self.saved != self.step:
            self.save(None)
        self.checkpoints.wait()
        return self.summary(stopped)

    def peak(self) -> float | None:
        """Returns the devices' peak FLOP/s; None if utilization is off or no step is left."""
        if self.flops is None or self.step == self.config.train.total_steps:
            return None
        return peak_of_devices(DTYPES[self.config.model.dtype])

    def take_step(self) -> None:
        """Takes one optimizer step, then evaluates and saves if either is due."""
        train = self.config.train
        self.profile.before(self.step + 1)
        with self.meter.during("data"):
            batch = next(self.data.train)
            shardings = self.setup.shardings
            placed = batch if shardings is None else shardings.put_share(batch, train.batch_size)
        self.state, metrics = self.setup.train_step(self.state, self.setup.base, placed)
        flops = self.flops(self.state, self.setup.base, placed) if self.flops else (0, 0)
        # Steps are dispatched asynchronously: the device runs this step while the host reads the
        # metrics of the previous one.
        self.look_at_pending()
        self.step += 1
        if self.step in self.setup.phase_changes:
            self.state = self.setup.phase_changes[self.step](self.state, self.setup.base)
        self.pending = (self.step, metrics, batch, flops)
        self.profile.after(self.step, self.state)
        if self.step % train.eval_every == 0 or self.step == train.total_steps:
            scores = self.evaluate()
            self.after = scores
            self.save(scores)
        elif self.step % train.save_every == 0:
            self.save(None)

    def look_at_pending(self) -> None:
        """Fetches the last step's metrics and records them if due.

        Raises:
            RunFailed: the loss or the gradient norm is not finite.
        """
        if self.pending is None:
            return
        (step, metrics, batch, flops), self.pending = self.pending, None
        with self.meter.during("device"):
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            where = not_finite(metrics["squares_by_leaf"], self.setup.names)
            what = f"the loss is {loss}, and the gradients of {where} are not finite"
            raise self.failure(step, what)
        self.meter.add(batch, *flops)
        if step % self.config.train.log_every == 0 or step == self.config.train.total_steps:
            self.record(step, jax.device_get(metrics))

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes a step's "train" and "layers" records from its fetched metrics."""
        reports = metrics.pop("reports")
        norms = {
            name: norms_by_module(metrics.pop(squares), self.setup.names, self.setup.patterns)
            for name, squares in (
                ("grad_norm", "squares_by_leaf"),
                ("update_norm", "update_squares_by_leaf"),
            )
        }
        entropy = {name: report.entropy for name, report in reports.items()}
        values = {
            **metrics,
            "router_entropy": np.mean([each.mean() for each in entropy.values()]),
            "learning_rate": self.learning_rate(step),
            **self.meter.read(),
            **memory_peaks(),
        }
        self.records.write("train", step, **values)
        self.records.write("layers", step, entropy=entropy, **norms)
        rate = f"{self.unit}_per_second"
        self.bar.update(step, loss=float(metrics["loss"]), **{rate: values[rate]})

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update that completed `step`."""
        return float(jax.numpy.asarray(self.setup.schedule(step - 1)))

    def evaluate(self) -> dict[str, float]:
        """Evaluates the current state, records the scores and shows them.

        Raises:
            RunFailed: a score after step 0 is not finite.
        """
        self.look_at_pending()
        result = evaluate(
            self.setup.eval_step,
            self.state.trainable,
            self.state.frozen(self.setup.base),
            self.data.evaluation,
            self.config.task,
            put=self.setup.put_whole,
        )
        scores = result.scores
        self.records.write("eval", self.step, split="evaluation", **scores, seconds=result.seconds)
        self.records.write("load", self.step, modules=result.load)
        bad = [name for name, value in scores.items() if not math.isfinite(value)]
        # A finite loss does not imply finite weights: the loss is computed before the update.
        if bad and self.step > 0:
            raise self.failure(self.step, f"held-out scores that are not finite: {', '.join(bad)}")
        if self.step > 0:
            self.best.add(self.step, goodness(self.best_by, scores[self.best_by]))
        self.bar.update(self.step, **{name: scores[name] for name in self.config.task.metrics})
        self.meter.pause(result.seconds)
        return scores

    def out_of_patience(self) -> bool:
        """True after `train.early_stopping_patience` evaluations without a new best score."""
        patience = self.config.train.early_stopping_patience
        return patience is not None and self.best.worse >= patience

    def save(self, scores: dict[str, float] | None) -> None:
        """Starts writing a checkpoint, after checking that the last step's loss is finite.

        Args:
            scores: the scores of an evaluation at this step; None without one.
        """
        self.look_at_pending()
        notes = {
            "best": dataclasses.asdict(self.best),
            "before": self.before,
            "after": self.after,
        }
        with self.meter.during("checkpoint"):
            self.checkpoints.save(self.state, self.data.train, notes, scores)
        self.saved = self.step

    def failure(self, step: int, what: str) -> RunFailed:
        """Returns the error for a value that is not finite; it names the checkpoint that is kept.

        Waits for the running checkpoint first.
        """
        self.checkpoints.wait()
        good = self.checkpoints.latest_step()
        kept = (
            "no checkpoint was saved yet"
            if good is None
            else f"the checkpoint of step {good} is kept"
        )
        return RunFailed(
            f"step {step}: {what}; {kept} in {self.config.out}: "
            f"lower the learning rate ({self.config.optimizer.learning_rate:g}) or check the data"
        )

    def summary(self, stopped: str) -> Summary:
        """Returns the run's summary; all checkpoints must be on disk by now."""
        scores = self.checkpoints.scores()
        best = self.checkpoints.best_step()
        return Summary(
            folder=Path(self.config.out),
            step=self.step,
            stopped=stopped,
            before=self.before,
            after=self.after,
            best_step=best,
            best_score=None if best is None else scores[best],
            notes=(*self.data.notes, *self.setup.notes),
            setup=self.setup,
        )
