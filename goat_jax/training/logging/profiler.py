"""Profiling of some steps by `jax.profiler`, for TensorBoard or ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import jax

FOLDER = "profile"


class Profile:
    """Traces a range of steps into `folder/profile`; a context manager around the loop.

    A continued run does not trace steps that were done before it restarted.

    Args:
        folder: the run folder.
        steps: the steps to trace, counted from 1; empty for none.
    """

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._on = Path(folder) / FOLDER, steps, False

    def before(self, step: int) -> None:
        """Starts the trace if this step is in the range."""
        if step in self._steps and not self._on:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._on = True

    def after(self, step: int, result: object) -> None:
        """Stops the trace after the last step of the range, once `result` is computed."""
        if self._on and step == self._steps[-1]:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        self._on = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._on:  # the run ended within the range: keep the incomplete trace
            self._stop()
