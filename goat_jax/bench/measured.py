"""What contenders took, side by side: seconds by turns, bytes and operations by count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from goat_jax.bench.turns import take_turns


class Contender(NamedTuple):
    """A compiled program: a call that runs it, its temporary bytes and its operations."""

    call: Callable[[], Any]
    temporaries: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a contender took.

    Attributes:
        size, name: of what.
        seconds: median of a forward and backward pass.
        ratio: of seconds to the first contender's, turn by turn.
        temporaries: bytes that the compiled program needs besides arguments and results.
        temporaries_ratio: to the first contender's.
        flops: of its matrix products.
    """

    size: str
    name: str
    seconds: float
    ratio: float
    temporaries: int
    temporaries_ratio: float
    flops: int


def measure(size: str, contenders: Mapping[str, Contender], turns: int) -> tuple[Measured, ...]:
    """Runs all in turn; the first is what the ratios are to.

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


def temporary_bytes(compiled: Any) -> int:
    """Bytes that a compiled program needs besides its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes
