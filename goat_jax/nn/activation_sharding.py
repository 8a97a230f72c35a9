"""Constraint of activations to their sharding on a mesh."""

from __future__ import annotations

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from goat_jax.typing import Array


def constrained(x: Array, sharding: NamedSharding) -> Array:
    """Constrains activations (B, T, D) to a sharding of their rows, tokens and features.

    Tokens that do not split into equal parts, such as the single one of generation, stay together.
    """
    rows, tokens, *rest = (*sharding.spec, None, None)[:3]
    axes = (tokens,) if isinstance(tokens, str) else tokens or ()
    if x.shape[1] % math.prod(sharding.mesh.shape[axis] for axis in axes):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(rows, None, *rest))
    return jax.lax.with_sharding_constraint(x, sharding)
