"""`RunState`: everything that changes during a run, and nothing that can be rebuilt."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from goat_jax.typing import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunState:
    """What a step takes and gives back. The frozen base is not in it.

    Attributes:
        step: optimizer steps done, int32 scalar.
        trainable: ``{"adapter": ..., "head": ...}``.
        opt_state: optax's, for `trainable` only.
        key: PRNG key of the run; step n uses ``fold_in(key, n)``.
    """

    step: Array
    trainable: dict[str, PyTree]
    opt_state: Any
    key: Key

    @classmethod
    def create(
        cls, trainable: dict[str, PyTree], optimizer: optax.GradientTransformation, key: Key
    ) -> RunState:
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), key)
