"""Ctrl-C and SIGTERM as a flag: a run ends after its step, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Signals:
    """A context in which the first SIGINT or SIGTERM only sets `caught` to its name.

    A second one ends the process as usual. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.caught = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number: int, frame: Any) -> None:
        del frame
        self.caught = signal.Signals(number).name
        signal.signal(number, self._old[number])  # a second one ends the process at once

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
