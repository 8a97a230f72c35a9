"""`RunState`: everything that changes during a run and cannot be rebuilt."""

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
    """State that a training step takes and returns. The frozen base is not part of it.

    Attributes:
        step: the number of optimizer steps done, an int32 scalar.
        trainable: the trained arrays, ``{"adapter": ..., "head": ...}``.
        opt_state: the optax state, for `trainable` only.
        key: the run's PRNG key; the step that follows n others uses ``fold_in(key, n)``.
        constants: the frozen adapter arrays that the method replaces during the run, under their
            paths in the base; empty for most methods.
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
        """Creates the state before the first step."""
        opt_state = optimizer.init(trainable)
        return cls(jnp.zeros((), jnp.int32), trainable, opt_state, key, constants or {})

    def frozen(self, base: PyTree) -> PyTree:
        """Returns the base with the current constants in it."""
        return _overlay(base, self.constants)


def _overlay(tree: PyTree, other: PyTree) -> PyTree:
    """Returns a nested dict with some of its leaves replaced by those of another one."""
    if not isinstance(other, dict):
        return other
    return {**tree, **{key: _overlay(tree[key], value) for key, value in other.items()}}
