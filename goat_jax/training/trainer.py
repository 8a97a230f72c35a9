"""The training loop, top to bottom: build, restore, step, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.data.metrics import goodness
from goat_jax.errors import RunFailed, UserError
from goat_jax.training.checkpoints.run_dir import check_same_rows, claimed, identify
from goat_jax.training.distributed.preemption import Signals
from goat_jax.training.distributed.processes import Votes, by_first, is_first, records_of
from goat_jax.training.evaluate import evaluate
from goat_jax.training.logging.metrics_log import Records
from goat_jax.training.logging.mfu import StepFlops, peak_of_devices
from goat_jax.training.logging.norms import norms_by_module, not_finite
from goat_jax.training.logging.profiler import Profile
from goat_jax.training.logging.progress_bar import TrainProgress
from goat_jax.training.logging.throughput import Meter, memory_peaks
from goat_jax.training.setup import Built, Data, build, load_data
from goat_jax.training.state import RunState
from goat_jax.training.task_types import problem_of
from goat_jax.typing import Batch

if TYPE_CHECKING:  # Orbax takes a fifth of a start, which a wrong word in a config would wait for
    from goat_jax.training.checkpoints.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        folder: the run folder.
        step: steps done.
        stopped: "finished", "no better score for N evaluations" or the signal's name.
        before, after: evaluation at step 0 and at the last step.
        best_step: the step of the best checkpoint on the disk; None before the first evaluation.
        best_score: its score; None without one.
        notes: what is worth knowing of the rows.
        built: model and report.
    """

    folder: Path
    step: int
    stopped: str
    before: dict[str, float] | None
    after: dict[str, float]
    best_step: int | None
    best_score: float | None
    notes: tuple[str, ...]
    built: Built


def fit(
    config: RunConfig,
    *,
    progress: bool = True,
    expired: Callable[[], None] | None = None,
    command: str | None = None,
) -> Summary:
    """Trains as the config says; continues a run that was begun in ``config.out``.

    A run that was killed and started again ends with the same bits as one that was not. In a run of
    several processes (`distributed.processes.join`) each of them calls it.

    Args:
        expired: called if SIGTERM or Ctrl-C came and the state is not saved within
            ``config.train.grace_seconds``.
        command: that began the run, for its records.

    Raises:
        UserError: anything wrong with the config, the data, the model or the folder.
        RunFailed: a loss or gradient that is not finite.
    """
    folder = Path(config.out)
    with contextlib.ExitStack() as held:
        by_first(lambda: held.enter_context(claimed(folder, config)))
        data = load_data(config)
        by_first(lambda: check_same_rows(folder, config, data))
        from goat_jax.training.checkpoints.checkpoint import Checkpoints  # Orbax is slow to import

        built = build(config, data)
        by_first(lambda: identify(folder, config, built, data, command))
        going_on = config.train.save_errors == "continue"
        checkpoints = Checkpoints(folder, config.best_by, going_on=going_on)
        held.callback(checkpoints.close)
        loop = _Loop(config, built, data, held.enter_context(records_of(config)), checkpoints)
        loop.restore()
        shown = progress and is_first()
        with (
            TrainProgress(config.train.steps, loop.step, shown) as loop.bar,
            Profile(folder, config.watch.profiled_steps()) as loop.profile,
            Signals(config.train.grace_seconds, expired) as signals,
        ):
            return loop.run(signals)


def begin(
    config: RunConfig, start: Callable[[Built], RunState], command: str | None = None
) -> Summary:
    """Makes the run folder of a state that was trained elsewhere: scores it, saves it as step 0.

    Args:
        start: gives the state, of the run's model before training.
        command: as for `fit`.

    Raises:
        UserError: as `fit`, or the folder holds a run already.
    """
    from goat_jax.training.checkpoints.checkpoint import Checkpoints

    folder = Path(config.out)
    with contextlib.ExitStack() as held:
        if held.enter_context(claimed(folder, config)):
            raise UserError(f"{folder} holds this run already: give another --out")
        data = load_data(config)
        built = build(config, data)
        state = start(built)
        checkpoints = Checkpoints(folder, config.best_by)
        held.callback(checkpoints.close)
        loop = _Loop(config, built, data, held.enter_context(records_of(config)), checkpoints)
        loop.state, loop.bar = state, TrainProgress(config.train.steps, 0, False)
        loop.before = loop.after = loop.evaluate()
        loop.save(loop.before)
        checkpoints.wait()
        # Last: without its checkpoint the run would be another one, so until then it is none.
        identify(folder, config, built, data, command)
        return loop.summary("imported")


@dataclasses.dataclass
class _Best:
    """The best evaluation so far, by `goodness`, and how many since were no better.

    It is saved with every checkpoint, so that patience survives a kill. Which checkpoint is the
    best is another question: only those on the disk count (`Checkpoints.best_step`).
    """

    step: int = -1
    score: float = -math.inf
    worse: int = 0

    def add(self, step: int, score: float) -> None:
        if math.isfinite(score) and score > self.score:
            self.step, self.score, self.worse = step, score, 0
        else:
            self.worse += 1


def _from_notes(notes: Any, step: int, folder: str) -> tuple[_Best, dict | None, dict]:
    """What `save` noted: the best evaluation, and the first and the last scores."""
    try:
        best = _Best(*(notes["best"][name] for name in ("step", "score", "worse")))
        before, after = notes["before"], notes["after"]
        numbers = [best.step, best.score, best.worse, *(before or {}).values(), *after.values()]
        if not all(isinstance(each, int | float) for each in numbers):
            raise TypeError("a value is no number")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the notes of the checkpoint of step {step} in {folder} are not a run's ({error}): "
            "move it away to go on from the checkpoint before"
        ) from error
    return best, before, after


class _Loop:
    """The state of `fit` between steps."""

    def __init__(
        self,
        config: RunConfig,
        built: Built,
        data: Data,
        records: Records,
        checkpoints: Checkpoints,
    ):
        self.config, self.built, self.data = config, built, data
        self.records, self.checkpoints, self.best_by = records, checkpoints, config.best_by
        self.unit = problem_of(config.task).unit
        self.state: RunState = built.state
        self.step = self.saved = 0
        self.best = _Best()
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] = {}
        self.pending: tuple[int, dict[str, Any], Batch, int] | None = None
        self.meter = Meter(self.unit, data.shares)
        self.flops = StepFlops(built.train_step) if config.watch.utilization else None
        self.bar: TrainProgress
        self.profile: Profile

    def restore(self) -> None:
        """Goes on from the newest checkpoint, or forgets what a run without one wrote."""
        step = self.checkpoints.latest_step()
        self.records.resume(-1 if step is None else step)
        if step is None:
            return
        found = self.checkpoints.restore(self.state, self.data.train, step)
        self.state, self.step, self.saved = found.state, step, step
        self.best, self.before, self.after = _from_notes(found.notes, step, self.config.out)

    def run(self, signals: Signals) -> Summary:
        """All steps that are left, or up to the one during which a signal came."""
        train = self.config.train
        if self.before is None:
            self.before = self.evaluate()
        stopped = "finished"
        self.meter = Meter(self.unit, self.data.shares, self.peak())
        votes = Votes()
        while self.step < train.steps:
            if self.out_of_patience():
                stopped = f"no better {self.best_by} for {train.patience} evaluations"
                break
            self.take_step()
            if votes.cast(bool(signals.caught)):
                stopped = signals.caught or signal.SIGTERM.name
                break
        if self.saved != self.step:
            self.save(None)
        self.checkpoints.wait()
        return self.summary(stopped)

    def peak(self) -> float | None:
        """What the devices could do, if that is watched and a step is left."""
        if self.flops is None or self.step == self.config.train.steps:
            return None
        return peak_of_devices(DTYPES[self.config.model.dtype])

    def take_step(self) -> None:
        """One optimizer step, and what is due after it."""
        train = self.config.train
        self.profile.before(self.step + 1)
        with self.meter.during("data"):
            batch = next(self.data.train)
            placed = self.built.placed
            there = batch if placed is None else placed.put_share(batch, train.batch_size)
        self.state, metrics = self.built.train_step(self.state, self.built.base, there)
        flops = self.flops(self.state, self.built.base, there) if self.flops else 0
        # The device works on this step while the host looks at the one before.
        self.look_at_pending()
        self.step += 1
        if self.step in self.built.switches:
            self.state = self.built.switches[self.step](self.state, self.built.base)
        self.pending = (self.step, metrics, batch, flops)
        self.profile.after(self.step, self.state)
        if self.step % train.eval_every == 0 or self.step == train.steps:
            scores = self.evaluate()
            self.after = scores
            self.save(scores)
        elif self.step % train.save_every == 0:
            self.save(None)

    def look_at_pending(self) -> None:
        """Fetches the last step's numbers: stops if they are not finite, records them if due."""
        if self.pending is None:
            return
        (step, metrics, batch, flops), self.pending = self.pending, None
        with self.meter.during("device"):
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            where = not_finite(metrics["squares_by_leaf"], self.built.names)
            what = f"the loss is {loss} and not finite are the gradients of {where}"
            raise self.failure(step, what)
        self.meter.add(batch, flops)
        if step % self.config.train.log_every == 0 or step == self.config.train.steps:
            self.record(step, jax.device_get(metrics))

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes the training records from the fetched numbers of a step."""
        reports = metrics.pop("reports")
        norms = {
            name: norms_by_module(metrics.pop(squares), self.built.names, self.built.patterns)
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
        """The rate that the step which led to `step` used."""
        return float(jax.numpy.asarray(self.built.schedule(step - 1)))

    def evaluate(self) -> dict[str, float]:
        """Scores the current state; records and shows them."""
        self.look_at_pending()
        found = evaluate(
            self.built.eval_step,
            self.state.trainable,
            self.state.frozen(self.built.base),
            self.data.evaluation,
            self.config.task,
            put=self.built.put_whole,
        )
        scores = found.scores
        self.records.write("eval", self.step, split="evaluation", **scores, seconds=found.seconds)
        self.records.write("load", self.step, modules=found.load)
        bad = [name for name, value in scores.items() if not math.isfinite(value)]
        if bad and self.step > 0:  # the last step broke the weights, though its own loss was finite
            raise self.failure(self.step, f"of the held-out scores {', '.join(bad)} is not finite")
        if self.step > 0:
            self.best.add(self.step, goodness(self.best_by, scores[self.best_by]))
        self.bar.update(self.step, **{name: scores[name] for name in self.config.task.metrics})
        self.meter.pause(found.seconds)
        return scores

    def out_of_patience(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.best.worse >= patience

    def save(self, scores: dict[str, float] | None) -> None:
        """Starts a checkpoint of a state whose numbers have been looked at."""
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
        """Says what was not finite, and what is left."""
        self.checkpoints.wait()
        good = self.checkpoints.latest_step()
        kept = "nothing was saved yet" if good is None else f"the checkpoint of step {good} is kept"
        return RunFailed(
            f"step {step}: {what}; {kept} in {self.config.out}: "
            f"lower the learning rate ({self.config.optimizer.learning_rate:g}) or check the data"
        )

    def summary(self, stopped: str) -> Summary:
        """The run's end; everything that was to be saved is on the disk by now."""
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
            notes=(*self.data.notes, *self.built.notes),
            built=self.built,
        )
