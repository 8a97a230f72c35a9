"""Ctrl-C and SIGTERM as a flag, so that a run ends after a step and not in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """A context in which the first SIGINT or SIGTERM only sets `caught` to its name.

    A second signal ends the process as usual. Outside the main thread the context does nothing.

    Args:
        grace: the seconds from the first signal to the end of the context.
        expired: a function that is called in a separate thread if the context lasts longer.
    """

    def __init__(self, grace: float = 0.0, expired: Callable[[], None] | None = None) -> None:
        self.caught = ""
        self._grace, self._expired = grace, expired
        self._timer: threading.Timer | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number: int, frame: object) -> None:
        del frame
        self.caught = signal.Signals(number).name
        signal.signal(number, self._old[number])  # the next signal ends the process at once
        if self._expired is not None:
            self._timer = threading.Timer(self._grace, self._expired)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *error: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._old.items():
            signal.signal(number, handler)
