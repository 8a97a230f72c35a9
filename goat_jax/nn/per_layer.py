"""Settings of which each layer has one, such as its window, in a scan over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.typing import Array, PyTree


class PerLayer(NamedTuple):
    """The different values of a setting of which each layer has one.

    Attributes:
        values: the different values, in the order of the layers.
        numbers: (L,), each layer's number among them; None unless there are several.

    >>> PerLayer.of([4, None, 4])
    PerLayer(values=(4, None), numbers=Array([0, 1, 0], dtype=int32))
    """

    values: tuple[Any, ...]
    numbers: Array | None

    @classmethod
    def of(cls, settings: Iterable[Any]) -> PerLayer:
        """Finds the different values among those of the layers."""
        settings = tuple(settings)
        values = tuple(dict.fromkeys(settings))
        numbers = jnp.array([values.index(each) for each in settings]) if values[1:] else None
        return cls(values, numbers)


def way_of(ways: Sequence[Callable[..., Array]], number: Array | None) -> Callable[..., Array]:
    """Returns the way of attention with a layer's number.

    A kernel's window is a constant, so that of several ways is a switch.
    """
    if number is None:
        return ways[0]

    def attend(*arrays: Array, **options: Any) -> Array:
        return jax.lax.switch(number, [partial(way, **options) for way in ways], *arrays)

    return attend


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Returns trees of arrays as one, with a leading axis if they are several."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees) if trees[1:] else trees[0]


def tree_of(trees: PyTree, number: Array | None) -> PyTree:
    """Returns the tree with a layer's number, of those that `stacked` returned."""
    return trees if number is None else jax.tree.map(lambda array: array[number], trees)
