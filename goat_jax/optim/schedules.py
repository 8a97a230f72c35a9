"""Learning-rate schedules with exactly the values of Hugging Face transformers."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from goat_jax.errors import UserError, nearest
from goat_jax.typing import Array


def _linear(progress: Array) -> Array:
    return 1.0 - progress


def _cosine(progress: Array) -> Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _constant(progress: Array) -> Array:
    return jnp.ones_like(progress)


SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
}
"""Learning rate divided by the peak, as a function of the progress (0..1) after the warm-up."""


def warmup_of(warmup_steps: int, total_steps: int) -> int:
    """Returns the steps of warm-up: `warmup_steps`, or a tenth of a run that is shorter than that.

    >>> warmup_of(100, 140), warmup_of(100, 60), warmup_of(100, 4)
    (100, 6, 0)
    """
    return warmup_steps if warmup_steps <= total_steps else total_steps // 10


def make_schedule(name: str, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Makes a learning-rate schedule over optimizer steps counted from 0.

    The learning rate rises linearly as ``step / warmup_steps`` (so it is 0 at step 0, as in torch),
    then follows `SCHEDULES`, whose progress is 1 at `total_steps`. A warm-up that does not fit into
    the run is shortened to `warmup_of`.

    Args:
        name: a key of `SCHEDULES`.
        peak: the largest learning rate.
        warmup_steps: optimizer steps of warm-up.
        total_steps: optimizer steps of the run.

    Raises:
        UserError: an unknown name, or a warm-up below 0.

    >>> schedule = make_schedule("linear", 1.0, 2, 6)
    >>> [round(float(schedule(jnp.array(step))), 2) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if name not in SCHEDULES:
        raise UserError(
            f"schedule {name!r} is not known{nearest(name, SCHEDULES)}: "
            f"give one of {', '.join(SCHEDULES)}"
        )
    if warmup_steps < 0:
        raise UserError(f"warm-up steps {warmup_steps} must be at least 0")
    warmup_steps = warmup_of(warmup_steps, total_steps)
    falls = SCHEDULES[name]

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count).astype(jnp.float32)
        rising = step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        falling = jnp.maximum(0.0, falls(jnp.minimum(progress, 1.0)))
        return peak * jnp.where(step < warmup_steps, rising, falling)

    return schedule
