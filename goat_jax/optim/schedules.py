"""Learning-rate schedules, number for number those of Hugging Face transformers."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

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
"""Share of the peak rate left, from the progress (0..1) after the warm-up."""


def make_schedule(name: str, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """A schedule over optimizer steps counted from 0.

    It rises linearly as ``step / warmup_steps`` (so step 0 has rate 0, as in torch), then falls as
    `SCHEDULES` says and reaches the end of its course at `total_steps`.

    Raises:
        UserError: an unknown name, or a warm-up that is not shorter than the run.

    >>> schedule = make_schedule("linear", 1.0, 2, 6)
    >>> [round(float(schedule(jnp.array(step))), 2) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if name not in SCHEDULES:
        raise UserError(
            f"schedule {name!r} is not known{nearest(name, SCHEDULES)}; "
            f"there are: {', '.join(SCHEDULES)}"
        )
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(f"{warmup_steps} warm-up steps do not fit into {total_steps} steps")
    falls = SCHEDULES[name]

    def schedule(count: Array) -> Array:
        step = jnp.asarray(count).astype(jnp.float32)
        rising = step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        falling = jnp.maximum(0.0, falls(jnp.minimum(progress, 1.0)))
        return peak * jnp.where(step < warmup_steps, rising, falling)

    return schedule  # type: ignore[return-value]
