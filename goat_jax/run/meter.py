"""What is counted between two records: time, tokens, padding."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from goat_jax.typing import Batch


class Meter:
    """Throughput since the last reading.

    >>> meter = Meter(clock=iter([0.0, 2.0]).__next__)
    >>> meter.add({"attention_mask": np.array([[1, 1, 1, 0]])})
    >>> meter.read()
    {'tokens_per_second': 1.5, 'padding_share': 0.25, 'seconds': 2.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._start()

    def _start(self) -> None:
        self._since, self._real, self._all = self._clock(), 0, 0

    def add(self, batch: Batch) -> None:
        """Counts a batch's tokens; attention_mask is (B, T), on the host."""
        self._real += int(np.count_nonzero(batch["attention_mask"]))
        self._all += int(np.size(batch["attention_mask"]))

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not training, such as an evaluation."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """tokens_per_second (real tokens), padding_share and seconds; starts again from zero."""
        now = self._clock()
        seconds = now - self._since
        real, all_ = self._real, self._all
        self._since, self._real, self._all = now, 0, 0
        return {
            "tokens_per_second": real / max(seconds, 1e-9),
            "padding_share": 1 - real / max(all_, 1),
            "seconds": seconds,
        }
