"""Throughput between two records: elapsed time by activity, tokens, padding and FLOPs."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from goat_jax.typing import Batch


class Meter:
    """Throughput since the last reading.

    Args:
        unit: the unit that is counted, "tokens" or "images".
        shares: the number of shards of a batch, of which this process counts one.
        peak: the peak FLOP/s of all devices together; None leaves the utilization out.
        clock: a function that returns the time in seconds; tests replace it.

    >>> meter = Meter(clock=iter([0.0, 0.5, 1.0, 2.0]).__next__, peak=10.0)
    >>> meter.add({"attention_mask": np.array([[1, 1, 1, 0]]), "weights": np.ones(1)}, 4, 3)
    >>> with meter.during("data"):
    ...     pass
    >>> meter.read()  # doctest: +NORMALIZE_WHITESPACE
    {'tokens_per_second': 1.5, 'padding_share': 0.25, 'seconds': 2.0, 'data_seconds': 0.5,
     'device_seconds': 0.0, 'checkpoint_seconds': 0.0, 'flops_per_second': 2.0,
     'utilization': 0.2, 'mfu': 0.15}
    """

    PARTS: tuple[str, ...] = ("data", "device", "checkpoint")

    def __init__(
        self,
        unit: str = "tokens",
        shares: int = 1,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._unit, self._shares, self._peak, self._clock = unit, shares, peak, clock
        self._start(self._clock())

    def _start(self, now: float) -> None:
        self._since, self._real, self._all = now, 0, 0
        self._flops = self._model_flops = 0
        self._spent = dict.fromkeys(self.PARTS, 0.0)

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Counts the time of a block as spent on one of `PARTS`."""
        start = self._clock()
        yield
        self._spent[part] += self._clock() - start

    def add(self, batch: Batch, flops: int = 0, model_flops: int = 0) -> None:
        """Counts a batch's tokens by its attention mask (B, T), or its rows if it has no mask.

        Args:
            batch: the batch.
            flops: the FLOPs that its step did.
            model_flops: the FLOPs that its step needed: without what was recomputed.
        """
        places = batch.get("attention_mask", batch["weights"])
        self._real += int(np.count_nonzero(places))
        self._all += int(np.size(places))
        self._flops += flops
        self._model_flops += model_flops

    def pause(self, seconds: float) -> None:
        """Excludes some seconds that were not training, such as an evaluation."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """Returns the throughput (real tokens only), padding and times, and resets them.

        `training.logging.metrics_log` describes the fields.
        """
        now = self._clock()
        seconds = max(now - self._since, 1e-9)
        figures = {
            f"{self._unit}_per_second": self._shares * self._real / seconds,
            "padding_share": 1 - self._real / max(self._all, 1),
            "seconds": now - self._since,
            **{f"{part}_seconds": spent for part, spent in self._spent.items()},
        }
        if self._peak is not None:
            figures["flops_per_second"] = self._flops / seconds
            figures["utilization"] = self._flops / seconds / self._peak
            figures["mfu"] = self._model_flops / seconds / self._peak
        self._start(now)
        return figures


def memory_peaks() -> dict[str, float]:
    """Returns the peak memory in bytes: of this process, and of its first device if it reports it.

    >>> memory_peaks()["host_peak_bytes"] > 2**20
    True
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peaks: dict[str, float] = {
        "host_peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    }
    device_peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peaks if device_peak is None else {**peaks, "device_peak_bytes": device_peak}
