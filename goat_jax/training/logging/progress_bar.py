"""Progress display of a training run: a live bar in a terminal, plain lines everywhere else."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self, TextIO

_LINE_SECONDS = 10.0  # plain lines are at least this far apart,
_LINE_SHARE = 0.05  # and one is due after this fraction of the run
_QUIET_SECONDS = 60.0  # or after this long, whichever is first
_SPEED_SECONDS = 600.0  # averaging window of the ETA's speed; long, since steps may be slow


class TrainProgress:
    """Shows step, loss, last evaluation metric, tokens/s, elapsed time and ETA; a context manager.

    In a terminal this is a live bar. In a pipe, a file or a CI log it prints plain lines: for the
    first and the last step, and between them after every 5 % of the run or every minute, never two
    within 10 seconds.

    Args:
        total_steps: the step at which the run ends.
        start_step: the step at which it starts; above 0 for a run that is continued.
        enabled: whether anything is printed; False for quiet runs and all processes but the first.
        stream: the stream to print to. None is standard error, so that results piped from standard
            output stay clean.
        clock: a function that returns the time in seconds; tests replace it.

    >>> with TrainProgress(total_steps=2, stream=sys.stdout, clock=lambda: 0.0) as progress:
    ...     progress.update(1, loss=0.70)
    ...     progress.message("saved at step 1")
    ...     progress.update(2, loss=0.65, accuracy=0.5)
    step 1/2 (50%) | loss 0.7000 | elapsed 0:00:00
    saved at step 1
    step 2/2 (100%) | loss 0.6500 | accuracy 0.5000 | elapsed 0:00:00
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        enabled: bool = True,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._step, self._total = start_step, total_steps
        self._values: dict[str, float] = {}
        self._live = False
        self._line_time = -float("inf")
        self._line_step: int | None = None
        if enabled:
            self._make_bar()

    def _make_bar(self) -> None:
        console = make_console(self._stream)
        self._live = console.is_terminal and not console.is_dumb_terminal
        # Without `start` the bar draws nothing but still computes the speed and the ETA for the
        # plain lines.
        self._bar = _make_rich_bar(console, self._clock)
        self._task = self._bar.add_task("", total=self._total, completed=self._step, status="")

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._bar.stop()
        elif self._line_step is not None and self._line_step != self._step:
            self._print_line()  # shows the last step of a run that stopped early

    def update(
        self,
        step: int,
        *,
        loss: Any = None,
        **values: Any,
    ) -> None:
        """Moves to `step`; values that are not given stay as they were.

        Args:
            step: the number of optimizer updates made so far.
            loss: the training loss. A JAX array blocks until it is computed, so give fetched
                numbers.
            values: evaluation metrics, shown under their names, and throughput, whose names end
                in `_per_second`.
        """
        if not self._enabled:
            return
        shown = {"loss": loss} | values
        self._values |= {name: float(value) for name, value in shown.items() if value is not None}
        self._step = step
        self._bar.update(self._task, completed=step, status=_status(self._values))
        if not self._live and self._line_is_due():
            self._print_line()

    def message(self, text: str) -> None:
        """Prints a separate line, above the bar if there is one."""
        if self._live:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            print(text, file=self._stream, flush=True)

    def _line_is_due(self) -> bool:
        if self._line_step is None or self._step >= self._total:
            return self._line_step != self._step
        waited = self._clock() - self._line_time
        far = self._step - self._line_step >= _LINE_SHARE * self._total
        return waited >= _LINE_SECONDS and (far or waited >= _QUIET_SECONDS)

    def _print_line(self) -> None:
        task = self._bar.tasks[self._task]
        share = self._step / max(self._total, 1)
        parts = [f"step {self._step}/{self._total} ({share:.0%})", _status(self._values)]
        parts.append(f"elapsed {_clock_time(task.elapsed or 0.0)}")
        if task.time_remaining is not None and not task.finished:
            parts.append(f"eta {_clock_time(task.time_remaining)}")
        print(" | ".join(part for part in parts if part), file=self._stream, flush=True)
        self._line_time, self._line_step = self._clock(), self._step


def make_console(stream: TextIO) -> Any:
    """Returns rich's console for a stream: colors and live bars in a terminal only.

    NO_COLOR takes the colors away. FORCE_COLOR, which CI systems set, is left to rich in terminals;
    by itself it would draw a live bar into a file.
    """
    from rich.console import Console

    return Console(file=stream, force_terminal=stream.isatty())


def _make_rich_bar(console: Any, clock: Callable[[], float]) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def whole() -> Column:  # in a narrow terminal only the status may wrap, never the times
        return Column(no_wrap=True)

    return Progress(
        MofNCompleteColumn(table_column=whole()),
        BarColumn(bar_width=24 if console.width >= 110 else 8, table_column=whole()),
        TextColumn("{task.fields[status]}", markup=False, table_column=Column()),
        TimeElapsedColumn(table_column=whole()),
        TextColumn("eta", table_column=whole()),
        TimeRemainingColumn(table_column=whole()),
        console=console,
        get_time=clock,
        speed_estimate_period=_SPEED_SECONDS,
        # Redirecting a piped standard output would send the pipe's lines to the terminal.
        redirect_stdout=sys.stdout.isatty(),
    )


RATE = "_per_second"


def _status(values: dict[str, float]) -> str:
    """Formats values, such as `loss 0.7000 | accuracy 0.8120 | 12,345 tokens/s`."""
    scores = [f"{k} {v:.4f}" for k, v in values.items() if not k.endswith(RATE)]
    rates = [f"{v:,.0f} {k.removesuffix(RATE)}/s" for k, v in values.items() if k.endswith(RATE)]
    parts = scores + rates
    return " | ".join(parts)


def _clock_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
