"""Norms of gradients and updates by module and layer, from a step's squared norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from goat_jax.typing import PyTree

Path = tuple[Any, ...]


def norms_by_module(
    squares_by_leaf: PyTree, names: Mapping[Path, Sequence[str]], patterns: Mapping[Path, str]
) -> dict[str, list[float]]:
    """Computes the norm over all arrays of a module, per layer.

    Args:
        squares_by_leaf: squared norms {part: {path: ...}}, as `training.step` returns them.
        names: path of a module -> its full name per layer.
        patterns: path of a module -> its name with ``{}`` for the layer.

    Returns:
        pattern -> norms of its layers. An array outside all modules is named by its path.

    >>> squares = {"adapter": {"up": {"a": np.array([9.0, 1.0]), "b": np.array([16.0, 0.0])}}}
    >>> norms_by_module(squares, {("up",): ["0.up", "1.up"]}, {("up",): "{}.up"})
    {'{}.up': [5.0, 1.0]}
    """
    sums: dict[Path, np.ndarray] = {}
    for keys, squares in _leaves(squares_by_leaf):
        owner = _owner(keys, names)
        of_layer = squares if len(names.get(owner, ())) == squares.size else squares.sum()
        sums[owner] = sums.get(owner, 0.0) + np.atleast_1d(of_layer)
    norms: dict[str, list[float]] = {}
    for owner, total in sums.items():
        name = patterns.get(owner, ".".join(map(str, owner)))
        norms.setdefault(name, []).extend(np.sqrt(total).tolist())
    return norms


def not_finite(squares_by_leaf: PyTree, names: Mapping[Path, Sequence[str]], most: int = 3) -> str:
    """Names the modules whose gradients are not finite, layer by layer.

    Args:
        squares_by_leaf: squared norms of the gradients, as for `norms_by_module`.
        names: path of a module -> its full name per layer.
        most: the largest number of names; further modules are only counted.

    >>> not_finite({"adapter": {"up": {"a": np.array([1.0, np.nan])}}}, {("up",): ["0.up", "1.up"]})
    '1.up'
    """
    modules: dict[str, None] = {}
    for keys, squares in _leaves(squares_by_leaf):
        owner, bad = _owner(keys, names), ~np.isfinite(squares)
        owners = names.get(owner, [".".join(map(str, keys))])
        if len(owners) == bad.size:
            modules |= dict.fromkeys(name for name, b in zip(owners, bad, strict=True) if b)
        elif bad.any():
            modules |= dict.fromkeys(owners[:1])
    listed = list(modules)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more or "none"


def _leaves(squares_by_leaf: PyTree) -> list[tuple[Path, np.ndarray]]:
    """Returns the paths below the part (adapter, head) with their arrays, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(squares_by_leaf))
    return [(tuple(entry.key for entry in path[1:]), np.atleast_1d(leaf)) for path, leaf in leaves]


def _owner(keys: Path, names: Mapping[Path, Sequence[str]]) -> Path:
    """Returns the path of an array's module, or the array's path if no module contains it."""
    return next((keys[:n] for n in range(len(keys)) if keys[:n] in names), keys)
