"""Interleaved timing. On a shared machine only calls that ran side by side are comparable."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every turn of one contender.

    Attributes:
        seconds: the seconds of each call, in the order of the turns.

    >>> slow, fast = Timing((2.0, 9.0, 4.0)), Timing((1.0, 6.0, 2.0))
    >>> slow.median, slow.over(fast)
    (4.0, 2.0)
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    def over(self, other: Timing) -> float:
        """Returns the median of the ratios to another timing, turn by turn."""
        return statistics.median(
            mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)
        )


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    turns: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times interleaved calls of all contenders, each until its result is computed.

    Each is called once before, to compile. Every other turn is in reverse order, so that no
    contender always follows the same one.

    Args:
        contenders: name -> function to time.
        turns: the number of timed calls of each.
        clock: a function that returns the time in seconds; tests replace it.

    >>> measured = take_turns({"a": lambda: 1, "b": lambda: 2}, 2, iter(range(8)).__next__)
    >>> measured["a"].seconds, measured["b"].seconds
    ((1, 1), (1, 1))
    """
    for call in contenders.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            start = clock()
            jax.block_until_ready(contenders[name]())
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Describes the machine that the numbers were measured on.

    >>> machine()["devices"] >= 1
    True
    """
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "jax": jax.__version__,
    }


def _processor() -> str:
    """Returns the processor's name from /proc/cpuinfo, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.machine())


def machine_line() -> str:
    """Returns `machine` as one line, to print above a table.

    >>> "  jax: " in machine_line()
    True
    """
    return "  ".join(f"{name}: {value}" for name, value in machine().items())


def random_like(shape: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    """Makes small non-negative random numbers of a shape and dtype.

    Arrays of dtypes that are not floating-point are zero, and a PRNG key becomes a PRNG key.

    Times do not depend on the numbers as long as they are finite. A negative second moment of an
    optimizer would give NaN, so no number is negative.
    """
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.key(seed)
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.zeros(shape.shape, shape.dtype)
    numbers = jax.random.normal(jax.random.key(seed), shape.shape, jnp.float32)
    return (0.02 * jnp.abs(numbers)).astype(shape.dtype)
