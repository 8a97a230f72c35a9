"""Comparison of compiled programs: interleaved timing, temporary bytes and FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.stages import Compiled

from goat_jax.bench.turns import take_turns


class Contender(NamedTuple):
    """A compiled program to measure.

    Attributes:
        call: a function that runs the program.
        temporaries: the program's temporary bytes (`temporary_bytes`).
        flops: the FLOPs of the program's matrix products.
    """

    call: Callable[[], Any]
    temporaries: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurement of one contender.

    Attributes:
        size: the size of the work, as text.
        name: the contender's name.
        seconds: the median seconds of a call.
        ratio: the median over the turns of the seconds divided by the first contender's.
        temporaries: the bytes that the compiled program needs besides arguments and results.
        temporaries_ratio: the temporary bytes divided by the first contender's.
        flops: the FLOPs of the program's matrix products.
    """

    size: str
    name: str
    seconds: float
    ratio: float
    temporaries: int
    temporaries_ratio: float
    flops: int


def measure(size: str, contenders: Mapping[str, Contender], turns: int) -> tuple[Measured, ...]:
    """Measures contenders with interleaved calls; ratios are to the first contender.

    Args:
        size: the size of the work, as text.
        contenders: name -> contender.
        turns: the number of timed calls of each.

    >>> one, two = measure("2 x 2", {"a": Contender(int, 10, 4), "b": Contender(int, 15, 4)}, 1)
    >>> one.ratio, two.temporaries_ratio
    (1.0, 1.5)
    """
    times = take_turns({name: each.call for name, each in contenders.items()}, turns)
    first = next(iter(contenders))
    return tuple(
        Measured(
            size,
            name,
            times[name].median,
            times[name].over(times[first]),
            each.temporaries,
            each.temporaries / max(contenders[first].temporaries, 1),
            each.flops,
        )
        for name, each in contenders.items()
    )


def temporary_bytes(compiled: Compiled) -> int:
    """Returns the bytes that a compiled program needs besides its arguments and results."""
    memory = compiled.memory_analysis()
    assert memory is not None  # some backends other than CPU, GPU and TPU have no analysis
    return memory.temp_size_in_bytes
