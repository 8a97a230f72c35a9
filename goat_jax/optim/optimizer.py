"""Optimizer of a run: gradient clipping, AdamW and learning-rate schedule as one optax chain."""

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
    """AdamW with the paper's settings.

    Attributes:
        learning_rate: the peak learning rate.
        schedule: the learning-rate schedule after a linear warm-up: "cosine", "linear" or
            "constant".
        warmup_steps: optimizer steps of warm-up; a run of fewer steps warms up for a tenth of them.
        weight_decay: decoupled weight decay, not applied to biases and the scales of norms.
        max_grad_norm: the largest global norm of the gradient; None does not clip.
        beta1: decay of Adam's first moment.
        beta2: decay of Adam's second moment.
        epsilon: term in Adam's denominator.
    """

    learning_rate: Positive = 1e-4
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    warmup_steps: Natural = 100
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
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
    """Builds the optax chain of a run.

    Args:
        config: learning rate, schedule and constants.
        total_steps: length of the schedule in optimizer steps.
        transform: the method's change of the chain.
        scales: the adapters' scales, for methods that need them (`pairs.scales_of`).
        rate: a multiplier of the schedule; may be traced, as in vmapped runs with several learning
            rates.

    >>> tx = make_optimizer(OptimizerConfig(warmup_steps=0), total_steps=10)
    >>> one, zero = {"a": jax.numpy.ones(())}, {"a": jax.numpy.zeros(())}
    >>> updates, _ = tx.update(one, tx.init(zero), zero)
    >>> round(float(updates["a"]), 8)
    -0.0001
    """
    schedule = schedule_of(config, total_steps)
    stages = Stages(
        clip=optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm),
        direction=scale_by_adam(config.beta1, config.beta2, config.epsilon),
        finish=optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=_decays),
            optax.scale_by_learning_rate(lambda step: rate * schedule(step)),
        ),
    )
    return transform(stages, scales, total_steps)


def schedule_of(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of optimizer steps done."""
    return make_schedule(config.schedule, config.learning_rate, config.warmup_steps, total_steps)


def shortened_warmup(config: OptimizerConfig, total_steps: int) -> str | None:
    """Returns a message for the user if a run is shorter than its warm-up, else None.

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
    """Marks parameters with weight decay: all but those that transformers' Trainer exempts."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) not in ("bias", "scale"), params
    )
