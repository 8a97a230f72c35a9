"""Helpers for tests of this package and of models built with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.nn.dense import Dense
from goat_jax.nn.stack import Stack
from goat_jax.typing import Array, PyTree


class CountTraces:
    """A function wrapper that counts traces: jit calls it once per compilation.

    >>> double = CountTraces(lambda x: 2 * x)
    >>> jitted = jax.jit(double)
    >>> [float(jitted(x)) for x in (1.0, 2.0)], double.count
    ([2.0, 4.0], 1)
    """

    def __init__(self, function: Callable):
        self.function = function
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.function(*args, **kwargs)


def relative_error(got: object, expected: object) -> float:
    """Returns the largest difference of two arrays over the largest expected magnitude (max norm).

    If all expected values are zero, it returns the largest difference itself.

    >>> relative_error([1.0, 4.0], [1.0, 5.0])
    0.2
    """
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise AssertionError(f"shape {a.shape}, expected {b.shape}")
    worst, size = (float(np.abs(v).max(initial=0.0)) for v in (a - b, b))
    return worst / (size or 1.0)


def assert_close(got: PyTree, expected: PyTree, relative: float = 1e-5) -> None:
    """Raises unless each leaf of two equal pytrees is within ``relative`` of the other (max norm).

    The message names the leaf that differs most.

    >>> assert_close({"a": [1.0]}, {"a": [1.1]})
    Traceback (most recent call last):
    AssertionError: ['a'][0]: relative error 9.1e-02 is above 1e-05
    """
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    if jax.tree.structure(got) != jax.tree.structure(expected):
        raise AssertionError(f"{jax.tree.structure(got)}, expected {jax.tree.structure(expected)}")
    pairs = zip(jax.tree.leaves(got), leaves, strict=True)
    errors = [(relative_error(a, b), jax.tree_util.keystr(path)) for a, (path, b) in pairs]
    worst, name = max(errors, default=(0.0, ""))
    # "not all(<=)" and not "any(>)", so that a NaN fails.
    if not all(error <= relative for error, _ in errors):
        raise AssertionError(
            f"{name or 'array'}: relative error {worst:.1e} is above {relative:.0e}"
        )


class TinyBlock(nnx.Module):
    """A residual block of three `Dense` layers: D -> D -> F -> D."""

    def __init__(self, width: int, inner: int, *, rngs: nnx.Rngs):
        self.query = Dense(width, width, rngs=rngs)
        self.up = Dense(width, inner, rngs=rngs)
        self.down = Dense(inner, width, rngs=rngs)

    def __call__(self, x: Array, ctx: Context) -> Array:
        return x + self.down(jnp.tanh(self.up(self.query(x, ctx), ctx)), ctx)


class TinyModel(nnx.Module):
    """A stack of `TinyBlock` and a head on the mean token, to test functions that take a model.

    >>> TinyModel(layers=2)(jnp.ones((3, 5, 8))).shape
    (3, 2)
    """

    def __init__(
        self, layers: int = 4, width: int = 8, inner: int = 12, classes: int = 2, seed: int = 0
    ):
        rngs = nnx.Rngs(seed)
        self.layers = Stack(lambda r: TinyBlock(width, inner, rngs=r), layers, rngs=rngs)
        self.head = Dense(width, classes, rngs=rngs)

    def hf_names(self) -> dict[str, str]:
        """Maps each path in this model to the name in a torch model of the same kind."""
        return {
            "layers.query": "model.layers.{}.attention.query",
            "layers.up": "model.layers.{}.mlp.up",
            "layers.down": "model.layers.{}.mlp.down",
            "head": "classifier",
        }

    def __call__(self, x: Array, ctx: Context = EVAL) -> Array:
        """Returns logits (B, classes) of x (B, T, D)."""
        return self.head(self.layers(x, ctx).mean(1), ctx.unmasked())
