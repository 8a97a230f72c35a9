"""LoRAHub: trained adapters of one shape, combined by a few numbers that need no gradient.

``a = sum_j c_j a_j`` and ``b = sum_j c_j b_j``, so that their product is quadratic in c and has
cross terms; the coefficients are the same in all layers. The result is an adapter like each of
them, of the method `lora`. (Huang et al. 2023, arXiv 2307.13269.)
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError
from goat_jax.typing import Array, Key, PyTree

BOUND = 1.5
"""Coefficients are searched between minus and plus this."""


def combine_adapters(adapters: Sequence[PyTree], coefficients: Array) -> PyTree:
    """One adapter pytree, every array the sum of theirs weighed by coefficients (J,).

    Args:
        adapters: J pytrees of one structure and shape: the factors of a layer, or all of a model's
            (``trainable["adapter"]``).

    Raises:
        UserError: adapters that do not fit together.

    >>> pair = {"a": jnp.ones((1, 2, 1)), "b": jnp.ones((1, 1, 2))}
    >>> combine_adapters([pair, pair], jnp.array([0.5, -1.0]))["a"][0, 0]
    Array([-0.5], dtype=float32)
    """
    shapes = [jax.tree.map(jnp.shape, adapter) for adapter in adapters]
    if len(adapters) != coefficients.shape[0]:
        raise UserError(f"{len(adapters)} adapters need as many coefficients: {coefficients.shape}")
    if not adapters or any(other != shapes[0] for other in shapes[1:]):
        raise UserError("adapters are combined array by array: they must be of one rank and shape")

    def add(*arrays: Array) -> Array:
        return jnp.einsum("J,J...->...", coefficients, jnp.stack(arrays), precision="highest")

    return jax.tree.map(add, *adapters)


def penalty(coefficients: Array, weight: float = 0.05) -> Array:
    """weight * mean |c|, which the search adds to the loss."""
    return weight * jnp.abs(coefficients).mean()


def search(
    objective: Callable[[np.ndarray], float], count: int, key: Key, *, budget: int = 40
) -> tuple[np.ndarray, float]:
    """The best coefficients (count,) found, and their objective: no gradients, `budget` calls.

    A (1+1) evolution strategy: from zeros, a random step, kept if it is better; steps grow after a
    success and shrink after a failure. An objective that is not finite is worse than any other.
    (The published code uses nevergrad's NGOpt.)

    >>> best, value = search(lambda c: float(((c - 0.5) ** 2).sum()), 2, jax.random.key(0))
    >>> value < 0.05
    True
    """
    steps = np.asarray(jax.random.normal(key, (budget, count), jnp.float32), np.float64)
    best, size = np.zeros(count), BOUND / 3
    value = finite_or_worst(objective(best))
    for step in steps[1:]:
        trial = np.clip(best + size * step, -BOUND, BOUND)
        found = finite_or_worst(objective(trial))
        size *= 1.5 if found < value else 0.84
        if found < value:
            best, value = trial, found
    return best, value


def finite_or_worst(value: float) -> float:
    """The value, or infinity if it is not finite: a search for the lowest passes it over."""
    return float(value) if math.isfinite(value) else math.inf
