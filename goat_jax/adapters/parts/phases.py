"""Training phases of a method: most have one, a few change their constants once at a given step."""

import dataclasses
from typing import Protocol

from goat_jax.registry import part
from goat_jax.typing import Array, Factors


class Course(Protocol):
    """Change of the adapters' constants between two training steps."""

    def switch_step(self) -> int | None:
        """Returns the number of optimizer steps before the change, or None for never."""
        ...

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        """Returns the new constants of one layer's adapter.

        Args:
            kernel: the frozen kernel (I, O).
            arrays: factors and constants before the change.
            scale: the experts' scales (E,).
        """
        ...


@part("course", "steady")
@dataclasses.dataclass(frozen=True)
class Steady:
    """A single phase: the constants never change.

    >>> Steady().switch_step() is None
    True
    """

    def switch_step(self) -> None:
        return None

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        del kernel, arrays, scale
        return {}


STEADY = Steady()
