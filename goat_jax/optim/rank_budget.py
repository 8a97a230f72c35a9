"""AdaLoRA's rank budget: prunes the least important triplets of all adapters during training.

After an update, the core (AdaLoRA's lambda) of a pruned triplet is set to zero. No shape changes,
and a triplet may come back. (Zhang et al. 2023, arXiv 2303.10512, algorithm 1.)
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from goat_jax.errors import UserError
from goat_jax.optim.pairs import is_pair
from goat_jax.typing import Array, Factors, PyTree

ARRAYS = ("a", "b", "core")
"""Names of an adapter's scored arrays."""


@dataclasses.dataclass(frozen=True)
class RankBudget:
    """Number of triplets that all adapters of a model may keep, as a function of the step.

    Attributes:
        target_rank: the average number of triplets per layer at the end.
        total_steps: the number of steps of the training.
        warmup: steps before the budget falls.
        cooldown: steps at the end during which the kept triplets no longer change.
        every: steps between two prunings.
        beta1: decay of the smoothed sensitivity.
        beta2: decay of the sensitivity's uncertainty.
    """

    target_rank: int
    total_steps: int
    warmup: int = 0
    cooldown: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        if self.warmup + self.cooldown >= self.total_steps:
            raise UserError(
                f"warmup {self.warmup} and cooldown {self.cooldown} fill the {self.total_steps} "
                "steps: no step is left to prune in"
            )

    def table(self, triplets: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number allowed after each of T steps (T,), and whether it prunes (T,).

        The number counts the triplets of all layers. It falls with the cube of the remaining time.

        Args:
            triplets: the initial number of triplets of all layers.
            layers: the number of adapted layers.

        Raises:
            UserError: the target is not below the initial number.

        >>> budget = RankBudget(2, total_steps=20, warmup=3, cooldown=4)
        >>> budget.table(6, layers=1)[0].tolist()
        [6, 6, 6, 6, 5, 4, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
        """
        target = self.target_rank * layers
        if target >= triplets:
            raise UserError(
                f"{triplets} triplets in {layers} layers leave nothing to prune to target_rank "
                f"{self.target_rank}: raise total_rank"
            )
        steps, end = np.arange(self.total_steps), self.total_steps - self.cooldown
        left = 1 - (steps - self.warmup) / (end - self.warmup)
        falling = np.floor(target + (triplets - target) * np.clip(left, 0, 1) ** 3)
        allowed = np.where(steps <= self.warmup, triplets, np.where(steps > end, target, falling))
        due = (steps % self.every == 0) | (steps >= end)
        return allowed.astype(np.int32), (steps > self.warmup) & due


class Scores(NamedTuple):
    """Smoothed sensitivity of every scored parameter, and its uncertainty.

    Attributes:
        mean: moving average of the sensitivity ``|parameter * gradient|``, a pytree like the
            factors.
        spread: moving average of the sensitivity's distance from `mean`, likewise.
    """

    mean: dict[str, Factors]
    spread: dict[str, Factors]


def init_scores(adapters: dict[str, Factors]) -> Scores:
    """Returns zero scores for the a, b and core of every adapter, by the adapter's name."""
    zeros = {
        name: {key: jnp.zeros_like(factors[key]) for key in ARRAYS}
        for name, factors in adapters.items()
    }
    return Scores(zeros, jax.tree.map(jnp.copy, zeros))


def update_scores(
    scores: Scores,
    adapters: dict[str, Factors],
    gradients: dict[str, Factors],
    budget: RankBudget,
    step: Array,
) -> Scores:
    """Returns the scores after a step; they no longer change during the cooldown.

    Args:
        scores: the scores before the step.
        adapters: the updated arrays of every adapter by name: a (..., E, I, R), b (..., E, R, O),
            core (..., E, R), with leading axes for stacked layers.
        gradients: the gradients of the same arrays.
        budget: the decays and the phases of the training.
        step: the number of the step, 0 for the first.
    """
    still_open = jnp.asarray(step) < budget.total_steps - budget.cooldown
    now = jax.tree.map(lambda value, slope: jnp.abs(value * slope), adapters, gradients)

    def averaged(beta: float, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(
            lambda o, n: jnp.where(still_open, beta * o + (1 - beta) * n, o), old, new
        )

    mean = averaged(budget.beta1, scores.mean, now)
    distance = jax.tree.map(lambda value, average: jnp.abs(value - average), now, mean)
    return Scores(mean, averaged(budget.beta2, scores.spread, distance))


def triplet_scores(scores: Scores) -> dict[str, Array]:
    """Returns the importance of every triplet by adapter: name -> (..., E, R)."""
    by_adapter = {}
    for name, mean in scores.mean.items():
        score = {key: mean[key] * scores.spread[name][key] for key in mean}
        by_adapter[name] = score["core"] + score["a"].mean(-2) + score["b"].mean(-1)
    return by_adapter


def kept_triplets(scores: Scores, budget: RankBudget, step: Array) -> dict[str, Array]:
    """Returns a mask of the triplets (..., E, R) of every adapter that are kept after a step.

    The triplets with the lowest scores of all adapters are pruned. Ties are pruned together, so
    initially, when all scores are zero, more are pruned than the budget requires.

    Args:
        scores: the scores after the step.
        budget: the number of triplets to keep.
        step: the number of the step, 0 for the first.
    """
    importance = triplet_scores(scores)
    every = jnp.sort(jnp.concatenate([score.ravel() for score in importance.values()]))
    layers = sum(score[..., 0, 0].size for score in importance.values())
    allowed, due = (jnp.asarray(column) for column in budget.table(every.size, layers))
    surplus = every.size - allowed[step]
    # The surplus-th smallest, counted from 1.
    threshold = jnp.where(due[step], every[jnp.maximum(surplus - 1, 0)], -jnp.inf)
    threshold = jnp.where(surplus > 0, threshold, -jnp.inf)
    return {name: score > threshold for name, score in importance.items()}


class RankBudgetState(NamedTuple):
    """State of `with_rank_budget`.

    Attributes:
        step: the number of updates done, int32.
        scores: the scores of all adapters, sharded like their factors.
        inner: the state of the wrapped optimizer.
    """

    step: Array
    scores: Scores
    inner: optax.OptState


def with_rank_budget(
    optimizer: optax.GradientTransformation, budget: RankBudget
) -> optax.GradientTransformation:
    """Wraps an optimizer so that its updates also prune cores as AdaLoRA does.

    Scores are computed from the gradients passed to it and from the parameters after the update.
    Clip the gradients before it, as PEFT's trainer does, not after it. Parameters outside of
    adapters with a core get the updates of `optimizer` unchanged, and so does everything in steps
    that prune nothing.

    Args:
        optimizer: computes the updates before pruning.
        budget: the number of triplets to keep, by step.

    Raises:
        UserError: at `init`, parameters without an adapter with a core.

    >>> adapter = {"a": jnp.ones((1, 4, 2)), "b": jnp.ones((1, 2, 4))}
    >>> adapter |= {"core": jnp.array([[3.0, 1.0]])}
    >>> tx = with_rank_budget(optax.sgd(0.0), RankBudget(1, total_steps=2))
    >>> state, gradients = tx.init(adapter), jax.tree.map(jnp.ones_like, adapter)
    >>> for _ in range(2):
    ...     updates, state = tx.update(gradients, state, adapter)
    >>> optax.apply_updates(adapter, updates)["core"]
    Array([[3., 0.]], dtype=float32)
    """

    def init(params: PyTree) -> RankBudgetState:
        adapters = adapters_with_core(params)
        if not adapters:
            raise UserError("a rank budget prunes adapters with a core, and this model has none")
        return RankBudgetState(
            jnp.zeros((), jnp.int32), init_scores(adapters), optimizer.init(params)
        )

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None
    ) -> tuple[PyTree, RankBudgetState]:
        slopes = adapters_with_core(updates)
        updates, inner = optimizer.update(updates, state.inner, params)
        after = adapters_with_core(optax.apply_updates(params, updates))
        scores = update_scores(state.scores, after, slopes, budget, state.step)
        kept = kept_triplets(scores, budget, state.step)

        def prune(path: tuple, pair: PyTree, values: PyTree) -> PyTree:
            name = jax.tree_util.keystr(path)
            if name not in kept:
                return pair
            return {**pair, "core": jnp.where(kept[name], pair["core"], -values["core"])}

        updates = jax.tree_util.tree_map_with_path(prune, updates, params, is_leaf=is_pair)
        return updates, RankBudgetState(state.step + 1, scores, inner)

    return optax.GradientTransformation(init, update)


def adapters_with_core(tree: PyTree) -> dict[str, Factors]:
    """Returns the scored arrays of every adapter with a core, by the adapter's path."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_pair)
    return {
        jax.tree_util.keystr(path): {key: node[key] for key in ARRAYS}
        for path, node in nodes
        if is_pair(node) and "core" in node
    }
