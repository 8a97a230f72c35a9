"""Finds the adapters in a pytree of parameters, for transforms that treat a and b together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.typing import Array, PyTree

Factors = Mapping[str, Array]


def is_pair(node: Any) -> bool:
    """Whether a node holds the factors a (..., I, R) and b (..., R, O) of an adapter."""
    return isinstance(node, Mapping) and "a" in node and "b" in node


def map_pairs(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """`function` of every adapter's dict of factors; everything outside of adapters stays.

    Args:
        function: (factors, those of the other trees) -> the new dict.
        others: of the same structure.

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
    """The scale of every adapter, where its factors are.

    Args:
        trainable, base: as `dense.split_model` gives them; the scales are frozen, so in base.

    Returns:
        the structure of `trainable` with an adapter's dict replaced by {"scale": (..., E)}, and
        None in the place of everything else.
    """

    def find(path: tuple, node: Any) -> Any:
        if not is_pair(node):
            return None
        place = base
        for entry in path[1:]:  # the first key tells adapters from heads
            place = place[entry.key]
        return {"scale": place["scale"]}

    return jax.tree_util.tree_map_with_path(find, trainable, is_leaf=is_pair)


def per_expert(scale: Array, factor: Array) -> Array:
    """A number per expert (..., E) broadcast against a factor (..., E, rows, columns).

    >>> per_expert(jnp.array([1.0, 2.0]), jnp.ones((2, 3, 4))).shape
    (2, 3, 4)
    """
    return jnp.broadcast_to(scale[..., None, None].astype(factor.dtype), factor.shape)
