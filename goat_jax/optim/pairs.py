"""Finds adapters in a pytree of parameters, for transforms that treat a and b together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.typing import Array, PyTree

Factors = Mapping[str, Array]


def is_pair(node: object) -> bool:
    """True if a node holds the factors a (..., I, R) and b (..., R, O) of an adapter."""
    return isinstance(node, Mapping) and "a" in node and "b" in node


def map_pairs(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Applies a function to every adapter's dict of factors; all other leaves stay unchanged.

    Args:
        function: (factors, the corresponding nodes of `others`) -> the new dict.
        tree: a pytree of parameters, gradients or updates.
        others: further pytrees of the same structure, at least down to the adapters.

    >>> tree = {"query": {"a": 1.0, "b": 2.0, "router": 3.0}, "bias": 4.0}
    >>> map_pairs(lambda pair: {**pair, "b": 20.0}, tree)["query"]
    {'a': 1.0, 'b': 20.0, 'router': 3.0}
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_pair)
    rest = [structure.flatten_up_to(other) for other in others]
    mapped = [
        function(leaf, *more) if is_pair(leaf) else leaf
        for leaf, *more in zip(leaves, *rest, strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)


def scales_of(trainable: PyTree, base: PyTree) -> PyTree:
    """Returns the scale of every adapter, at the place of its factors.

    Args:
        trainable: the trained parameters, from `dense.split_model`.
        base: the frozen parameters, from `dense.split_model`, which hold the scales.

    Returns:
        The structure of `trainable` with each adapter's dict replaced by {"scale": (..., E)}, and
        None in place of everything else.
    """

    def find(path: tuple, node: PyTree) -> PyTree:
        if not is_pair(node):
            return None
        place = base
        for entry in path[1:]:  # base lacks the first key, which separates adapters and heads
            place = place[entry.key]
        return {"scale": place["scale"]}

    return jax.tree_util.tree_map_with_path(find, trainable, is_leaf=is_pair)


def per_expert(scale: Array, factor: Array) -> Array:
    """Broadcasts one number per expert (..., E) to a factor's shape (..., E, rows, columns).

    >>> per_expert(jnp.array([1.0, 2.0]), jnp.ones((2, 3, 4))).shape
    (2, 3, 4)
    """
    return jnp.broadcast_to(scale[..., None, None].astype(factor.dtype), factor.shape)
