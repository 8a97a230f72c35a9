"""LoRAHub: combines trained adapters of one shape by coefficients found without gradients.

``a = sum_j c_j a_j`` and ``b = sum_j c_j b_j``, so the product is quadratic in c and has cross
terms. The coefficients are the same in all layers. The result is an adapter of the method `lora`,
of the same shape as its inputs. (Huang et al. 2023, arXiv 2307.13269.)
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError
from goat_jax.typing import Array, Key, PyTree

BOUND = 1.5
"""Limit of the search: every coefficient stays between -BOUND and BOUND."""


def combine_adapters(adapters: Sequence[PyTree], coefficients: Array) -> PyTree:
    """Returns the weighted sum of adapters, array by array.

    Args:
        adapters: J pytrees of one structure and shape: the factors of one layer, or those of a
            complete model (``trainable["adapter"]``).
        coefficients: the adapters' weights (J,).

    Raises:
        UserError: the adapters differ in structure or shape, there is none, or their number is not
            that of the coefficients.

    >>> pair = {"a": jnp.ones((1, 2, 1)), "b": jnp.ones((1, 1, 2))}
    >>> combine_adapters([pair, pair], jnp.array([0.5, -1.0]))["a"][0, 0]
    Array([-0.5], dtype=float32)
    """
    shapes = [jax.tree.map(jnp.shape, adapter) for adapter in adapters]
    if len(adapters) != coefficients.shape[0]:
        raise UserError(
            f"{len(adapters)} adapters need one coefficient each, not shape {coefficients.shape}"
        )
    if not adapters or any(other != shapes[0] for other in shapes[1:]):
        raise UserError(
            "adapters are combined array by array: give adapters of equal rank and shape"
        )

    def add(*arrays: Array) -> Array:
        return jnp.einsum("J,J...->...", coefficients, jnp.stack(arrays), precision="highest")

    return jax.tree.map(add, *adapters)


def penalty(coefficients: Array, weight: float = 0.05) -> Array:
    """L1 penalty ``weight * mean |c|``, added to the loss that `search` minimizes."""
    return weight * jnp.abs(coefficients).mean()


def search(
    objective: Callable[[np.ndarray], float], count: int, key: Key, *, budget: int = 40
) -> tuple[np.ndarray, float]:
    """Minimizes an objective over coefficients without gradients.

    A (1+1) evolution strategy: it starts from zeros, takes a random step and keeps it if the
    objective is lower. Steps grow after a success and shrink after a failure. An objective that is
    not finite counts as infinity. (The published code uses nevergrad's NGOpt.)

    Args:
        objective: maps coefficients (count,) to the value to minimize.
        count: the number of coefficients.
        key: PRNG key of the random steps.
        budget: the number of calls of the objective.

    Returns:
        The best coefficients (count,), and their objective.

    >>> best, value = search(lambda c: float(((c - 0.5) ** 2).sum()), 2, jax.random.key(0))
    >>> value < 0.05
    True
    """
    steps = np.asarray(jax.random.normal(key, (budget, count), jnp.float32), np.float64)
    best, size = np.zeros(count), BOUND / 3
    value = finite_or_worst(objective(best))
    for step in steps[1:]:
        trial = np.clip(best + size * step, -BOUND, BOUND)
        trial_value = finite_or_worst(objective(trial))
        size *= 1.5 if trial_value < value else 0.84
        if trial_value < value:
            best, value = trial, trial_value
    return best, value


def finite_or_worst(value: float) -> float:
    """Returns the value, or infinity if it is not finite, so that a minimization rejects it."""
    return float(value) if math.isfinite(value) else math.inf
