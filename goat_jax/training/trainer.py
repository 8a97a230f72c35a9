"""`fit` and `begin`: build a run in its folder, restore it and run its loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.training.checkpoints.run_dir import acquired, check_same_rows, identify
from goat_jax.training.data import load_data
from goat_jax.training.distributed.preemption import Signals
from goat_jax.training.distributed.processes import by_first, is_first, records_of
from goat_jax.training.logging.header import header
from goat_jax.training.logging.profiler import Profile
from goat_jax.training.logging.progress_bar import TrainProgress
from goat_jax.training.logging.summary import Summary
from goat_jax.training.loop import Loop
from goat_jax.training.setup import TrainSetup, build
from goat_jax.training.state import RunState


def fit(
    config: RunConfig,
    *,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    expired: Callable[[], None] | None = None,
    command: str | None = None,
) -> Summary:
    """Trains according to the config, or continues the run that already exists in ``config.out``.

    A run that is killed and restarted ends with bitwise the same result as an uninterrupted one.
    In a multi-process run (`distributed.processes.join`) every process calls this function.

    Args:
        config: the run's config.
        progress: whether to show a progress bar; only the first process shows one.
        say: a function that the first process calls with the run's header before the first step.
        expired: a function that is called if SIGTERM or Ctrl-C arrived and the state is not saved
            within ``config.train.grace_seconds``.
        command: the command line that starts the run, kept in run.json.

    Returns:
        The run's scores, its best checkpoint and the reason it ended.

    Raises:
        UserError: anything wrong with the config, the data, the model or the folder.
        RunFailed: a loss, gradient or evaluation score that is not finite, or a file that could
            not be written.
    """
    folder = Path(config.out)
    with contextlib.ExitStack() as held:
        # The cheapest checks come first: the folder, then the rows, then the model.
        by_first(lambda: held.enter_context(acquired(folder, config)))
        data = load_data(config)
        config = data.config
        by_first(lambda: check_same_rows(folder, data))
        # Importing Orbax takes a fifth of the start-up time, so the rows are checked first.
        from goat_jax.training.checkpoints.checkpoint import Checkpoints

        setup = build(config, data)
        by_first(lambda: identify(folder, setup, data, command))
        keep_going = config.train.save_errors == "continue"
        checkpoints = Checkpoints(folder, config.best_by, keep_going=keep_going)
        held.callback(checkpoints.close)
        loop = Loop(config, setup, data, held.enter_context(records_of(config)), checkpoints)
        loop.restore()
        if say is not None and is_first():
            say(header(setup, data))
        shown = progress and is_first()
        with (
            TrainProgress(config.train.total_steps, loop.step, shown) as loop.bar,
            Profile(folder, config.logging.profiled_steps()) as loop.profile,
            Signals(config.train.grace_seconds, expired) as signals,
        ):
            return loop.run(signals)


def begin(
    config: RunConfig, start: Callable[[TrainSetup], RunState], command: str | None = None
) -> Summary:
    """Creates a run folder for a state that was trained elsewhere.

    The state is evaluated and saved as the checkpoint of step 0.

    Args:
        config: the config of the new run.
        start: a function that maps the built model to the state to save.
        command: the command line that starts the run, kept in run.json.

    Returns:
        The new run's scores; `Summary.stopped` is "imported".

    Raises:
        UserError: as for `fit`, or the folder already holds this run.
    """
    from goat_jax.training.checkpoints.checkpoint import Checkpoints

    folder = Path(config.out)
    with contextlib.ExitStack() as held:
        if held.enter_context(acquired(folder, config)):
            raise UserError(f"{folder} already holds this run: give another --out")
        data = load_data(config)
        config = data.config
        setup = build(config, data)
        state = start(setup)
        checkpoints = Checkpoints(folder, config.best_by)
        held.callback(checkpoints.close)
        loop = Loop(config, setup, data, held.enter_context(records_of(config)), checkpoints)
        loop.state, loop.bar = state, TrainProgress(config.train.total_steps, 0, False)
        loop.before = loop.after = loop.evaluate()
        loop.save(loop.before)
        checkpoints.wait()
        # run.json comes last: with run.json but no checkpoint, a later `fit` would train this run
        # from scratch instead of from the imported state.
        identify(folder, setup, data, command)
        return loop.summary("imported")
