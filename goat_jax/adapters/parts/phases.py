"""Training phases of a method: most have one, a few change their constants once at a given step."""

import dataclasses
from typing import Protocol

from goat_jax.registry import part
from goat_jax.typing import Array, Factors


class Phases(Protocol):
    """Change of the adapters' constants between two training steps.

    Attributes:
        change_step: the number of optimizer steps before the change; None for no change.
    """

    @property
    def change_step(self) -> int | None: ...

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        """Returns the new constants of one layer's adapter.

        Args:
            kernel: the frozen kernel (I, O).
            arrays: factors and constants before the change.
            scale: the experts' scales (E,).
        """
        ...


@part("phases", "constant")
@dataclasses.dataclass(frozen=True)
class ConstantPhase:
    """A single phase: the constants never change.

    >>> ConstantPhase().change_step is None
    True
    """

    @property
    def change_step(self) -> None:
        return None

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        del kernel, arrays, scale
        return {}


CONSTANT_PHASE = ConstantPhase()
