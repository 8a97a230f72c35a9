"""What is counted between two records: time, tokens, padding."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from goat_jax.typing import Batch


class Meter:
    """Throughput since the last reading.

    Args:
        unit: what is counted.
        shares: of a batch there are so many, of which this process counts one.

    >>> meter = Meter(clock=iter([0.0, 2.0]).__next__)
    >>> meter.add({"attention_mask": np.array([[1, 1, 1, 0]]), "weights": np.ones(1)})
    >>> meter.read()
    {'tokens_per_second': 1.5, 'padding_share': 0.25, 'seconds': 2.0}
    """

    def __init__(
        self,
        unit: str = "tokens",
        shares: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._unit, self._shares, self._clock = unit, shares, clock
        self._start()

    def _start(self) -> None:
        self._since, self._real, self._all = self._clock(), 0, 0

    def add(self, batch: Batch) -> None:
        """Counts a batch's tokens by its attention mask (B, T), or without one its rows."""
        places = batch.get("attention_mask", batch["weights"])
        self._real += int(np.count_nonzero(places))
        self._all += int(np.size(places))

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not training, such as an evaluation."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """tokens_per_second (or the other unit; real ones only), padding_share and seconds."""
        now = self._clock()
        seconds = now - self._since
        real, all_ = self._real, self._all
        self._since, self._real, self._all = now, 0, 0
        return {
            f"{self._unit}_per_second": self._shares * real / max(seconds, 1e-9),
            "padding_share": 1 - real / max(all_, 1),
            "seconds": seconds,
        }
