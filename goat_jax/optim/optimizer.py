"""The optimizer of a run: clip, AdamW, schedule, as one optax chain."""

import dataclasses
from typing import Annotated

import jax
import optax

from goat_jax.optim.adam import scale_by_adam
from goat_jax.optim.schedules import SCHEDULES, make_schedule, warmup_of
from goat_jax.optim.transforms import PLAIN, Stages, Transform
from goat_jax.typing import Array, PyTree
from goat_jax.validation.fields import Natural, NonNegative, OneOf, Positive, Rate, check_fields


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as the paper runs it.

    Attributes:
        learning_rate: peak rate.
        schedule: "cosine", "linear" or "constant", each after a linear warm-up.
        warmup_steps: optimizer steps of warm-up; a run of fewer steps warms up for a tenth of them.
        weight_decay: decoupled, not on biases and the scales of norms.
        clip: largest global norm of the gradient; None does not clip.
        beta1: decay of Adam's first moment.
        beta2: decay of Adam's second moment.
        epsilon: term in Adam's denominator.
    """

    learning_rate: Positive = 1e-4
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    warmup_steps: Natural = 100
    weight_decay: NonNegative = 0.0
    clip: Positive | None = 1.0
    beta1: Rate = 0.9
    beta2: Rate = 0.999
    epsilon: Positive = 1e-8

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")


def make_optimizer(
    config: OptimizerConfig,
    total_steps: int,
    transform: Transform = PLAIN,
    scales: PyTree = None,
    rate: float | Array = 1.0,
) -> optax.GradientTransformation:
    """The optax chain of a run.

    Args:
        config: rates and constants.
        total_steps: length of the schedule in optimizer steps.
        transform: what a method makes of the chain.
        scales: of the adapters, for methods that need them (`pairs.scales_of`).
        rate: what the schedule is multiplied with; may be traced, as in runs over several rates.

    >>> tx = make_optimizer(OptimizerConfig(warmup_steps=0), total_steps=10)
    >>> one, zero = {"a": jax.numpy.ones(())}, {"a": jax.numpy.zeros(())}
    >>> updates, _ = tx.update(one, tx.init(zero), zero)
    >>> round(float(updates["a"]), 8)
    -0.0001
    """
    schedule = schedule_of(config, total_steps)
    stages = Stages(
        clip=optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        direction=scale_by_adam(config.beta1, config.beta2, config.epsilon),
        finish=optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=_decays),
            optax.scale_by_learning_rate(lambda step: rate * schedule(step)),
        ),
    )
    return transform(stages, scales, total_steps)


def schedule_of(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate by the number of steps done before."""
    return make_schedule(config.schedule, config.learning_rate, config.warmup_steps, total_steps)


def shortened_warmup(config: OptimizerConfig, total_steps: int) -> str | None:
    """A line for the reader if a run is too short for its warm-up, else None.

    >>> shortened_warmup(OptimizerConfig(warmup_steps=100), 60)
    '6 warm-up steps, a tenth of the run: 100 do not fit into its 60 steps'
    """
    steps = warmup_of(config.warmup_steps, total_steps)
    if steps == config.warmup_steps:
        return None
    return (
        f"{steps} warm-up steps, a tenth of the run: {config.warmup_steps} do not fit into its "
        f"{total_steps} steps"
    )


def _decays(params: PyTree) -> PyTree:
    """Which parameters decay; the others are those that transformers' Trainer leaves alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) not in ("bias", "scale"), params
    )
