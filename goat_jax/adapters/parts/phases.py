"""How a method's course goes: most train as they start, a few change once between two steps."""

import dataclasses
from typing import Protocol

from goat_jax.registry import part
from goat_jax.typing import Array, Factors


class Course(Protocol):
    """A change of the adapters' constants in the middle of a training."""

    def switch_step(self) -> int | None:
        """After how many optimizer steps it happens, None for never."""
        ...

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        """What the constants of one layer's adapter become.

        Args:
            kernel: the frozen kernel (I, O).
            arrays: factors and constants as they are.
            scale: (E,).
        """
        ...


@part("course", "steady")
@dataclasses.dataclass(frozen=True)
class Steady:
    """Nothing changes.

    >>> Steady().switch_step() is None
    True
    """

    def switch_step(self) -> None:
        return None

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        del kernel, arrays, scale
        return {}


STEADY = Steady()
