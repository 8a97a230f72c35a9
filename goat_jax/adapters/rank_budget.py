"""AdaLoRA's rank budget: which triplets of all adapters are worth keeping, step by step.

The core (AdaLoRA's lambda) of a triplet that is not worth its rank is set to zero after an update;
no shape changes, and a triplet may come back.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.combines import DiagonalCore
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.typing import Array, Factors


@dataclasses.dataclass(frozen=True)
class PrunedCore(DiagonalCore):
    """s x a diag(core) b, whose cores are pruned to `target_rank` a layer on average.

    Attributes:
        target_rank: triplets per layer that are left at the end.
    """

    target_rank: int = 8
    starts_plain: ClassVar[bool] = False

    def check(self, spec: AdapterSpec) -> None:
        """There has to be something to prune."""
        if self.target_rank < 1:
            raise UserError(f"target_rank {self.target_rank} must be at least 1")
        if spec.total_rank <= self.target_rank:
            raise UserError(
                f"total rank {spec.total_rank} leaves nothing to prune to target_rank "
                f"{self.target_rank}: start with more, for example {3 * self.target_rank // 2 + 1}"
            )
        if spec.num_experts > 1 or not spec.router.mergeable:
            raise UserError("PrunedCore prunes one pair of factors: num_experts=1, router=none")


@dataclasses.dataclass(frozen=True)
class RankBudget:
    """How many triplets all adapters of a model may keep, by the step.

    Attributes:
        start_rank, target_rank: triplets per layer at the start and at the end.
        total_steps: of the whole training.
        warmup: steps before the budget falls.
        cooldown: steps at the end whose choice is final.
        every: steps between two prunings.
        beta1, beta2: of the smoothed sensitivity and of its uncertainty.
    """

    start_rank: int
    target_rank: int
    total_steps: int
    warmup: int = 0
    cooldown: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        if self.target_rank >= self.start_rank:
            raise UserError(
                f"start_rank {self.start_rank} leaves nothing to prune to target_rank "
                f"{self.target_rank}: start with more"
            )
        if self.warmup + self.cooldown >= self.total_steps:
            raise UserError(
                f"warmup {self.warmup} and cooldown {self.cooldown} fill the {self.total_steps} "
                "steps: no step is left to prune in"
            )

    def table(self, layers: int) -> tuple[np.ndarray, np.ndarray]:
        """Triplets allowed in all layers after every step (T,), and whether that step prunes (T,).

        It falls with the cube of the time that is left.

        >>> budget = RankBudget(6, 2, total_steps=20, warmup=3, cooldown=4)
        >>> budget.table(1)[0].tolist()
        [6, 6, 6, 6, 5, 4, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
        """
        steps, end = np.arange(self.total_steps), self.total_steps - self.cooldown
        start, target = self.start_rank * layers, self.target_rank * layers
        left = 1 - (steps - self.warmup) / (end - self.warmup)
        falling = np.floor(target + (start - target) * np.clip(left, 0, 1) ** 3).astype(np.int32)
        allowed = np.where(steps <= self.warmup, start, np.where(steps > end, target, falling))
        due = (steps % self.every == 0) | (steps >= end)
        return allowed.astype(np.int32), (steps > self.warmup) & due


class Scores(NamedTuple):
    """Smoothed sensitivity of every trained number, and its uncertainty: pytrees like the factors.

    Attributes:
        mean: moving average of |parameter * gradient|.
        spread: moving average of how far it is from that.
    """

    mean: dict[str, Factors]
    spread: dict[str, Factors]


def init_scores(adapters: dict[str, Factors]) -> Scores:
    """Zeros, for the a, b and core of every adapter by name."""
    zeros = {
        name: {key: jnp.zeros_like(factors[key]) for key in ("a", "b", "core")}
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
    """The scores after a step, from its updated factors and its gradients; final in the cooldown.

    Args:
        adapters, gradients: by name: a (..., E, I, R), b (..., E, R, O), core (..., E, R), with
            leading axes for stacked layers.
        step: 0 for the first.
    """
    still_open = jnp.asarray(step) < budget.total_steps - budget.cooldown

    def pick(new: Array, old: Array) -> Array:
        return jnp.where(still_open, new, old)

    def average(beta: float, old: Array, new: Array) -> Array:
        return beta * old + (1 - beta) * new

    def each(mean: Array, spread: Array, value: Array, gradient: Array) -> tuple[Array, Array]:
        now = jnp.abs(value * gradient)
        new = average(budget.beta1, mean, now)
        wide = average(budget.beta2, spread, jnp.abs(now - new))
        return pick(new, mean), pick(wide, spread)

    values, slopes = (_like(scores.mean, tree) for tree in (adapters, gradients))
    both = jax.tree.map(each, scores.mean, scores.spread, values, slopes)
    first, second = (
        jax.tree.map(lambda pair, i=i: pair[i], both, is_leaf=lambda x: isinstance(x, tuple))
        for i in range(2)
    )
    return Scores(first, second)


def _like(tree: dict[str, Factors], other: dict[str, Factors]) -> dict[str, Factors]:
    """What of another tree has a place in this one."""
    return {name: {key: other[name][key] for key in own} for name, own in tree.items()}


def triplet_scores(scores: Scores) -> dict[str, Array]:
    """How much every triplet of every adapter matters: name -> (..., E, R)."""
    found = {}
    for name, mean in scores.mean.items():
        score = {key: mean[key] * scores.spread[name][key] for key in mean}
        found[name] = score["core"] + score["a"].mean(-2) + score["b"].mean(-1)
    return found


def pruned_cores(
    adapters: dict[str, Factors], scores: Scores, budget: RankBudget, step: Array
) -> dict[str, Array]:
    """The cores (..., E, R) by name after a step, those of the least triplets of all set to zero.

    Ties go together, so at first, where all scores are zero, more than the budget asks for.
    """
    found = triplet_scores(scores)
    every = jnp.sort(jnp.concatenate([score.ravel() for score in found.values()]))
    layers = every.size // budget.start_rank
    allowed, due = (jnp.asarray(column) for column in budget.table(layers))
    surplus = every.size - allowed[step]
    # The surplus-th smallest, counted from 1.
    threshold = jnp.where(due[step], every[jnp.maximum(surplus - 1, 0)], -jnp.inf)
    threshold = jnp.where(surplus > 0, threshold, -jnp.inf)
    return {
        name: jnp.where(score <= threshold, 0.0, adapters[name]["core"])
        for name, score in found.items()
    }
