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
        constants: those frozen arrays of adapters that the method exchanges during the run, with
            the paths they have in the base; empty for most methods.
    """

    step: Array
    trainable: dict[str, PyTree]
    opt_state: Any
    key: Key
    constants: PyTree = dataclasses.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        trainable: dict[str, PyTree],
        optimizer: optax.GradientTransformation,
        key: Key,
        constants: PyTree | None = None,
    ) -> RunState:
        """The state before the first step."""
        opt_state = optimizer.init(trainable)
        return cls(jnp.zeros((), jnp.int32), trainable, opt_state, key, constants or {})

    def frozen(self, base: PyTree) -> PyTree:
        """The base, with the constants as they are now."""
        return _overlay(base, self.constants)


def _overlay(tree: PyTree, other: PyTree) -> PyTree:
    """A nested dict with the leaves of another in the place of its own."""
    if not isinstance(other, dict):
        return other
    return {**tree, **{key: _overlay(tree[key], value) for key, value in other.items()}}
