"""Checkpoints of a state of a few numbers: no model, no data."""

import json

import jax
import jax.numpy as jnp

from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.state import RunState


class Batches:
    """A data iterator as far as checkpoints know one."""

    def __init__(self):
        self.state = {"next_index": 0}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def state_of(step: int) -> RunState:
    return RunState(
        step=jnp.asarray(step, jnp.int32),
        trainable={"a": jnp.full((4, 3), step, jnp.float32)},
        opt_state=(jnp.zeros((4, 3)),),
        key=jax.random.key(step),
        constants={},
    )


def save(checkpoints: Checkpoints, step: int, scores: dict[str, float] | None = None) -> None:
    data = Batches()
    data.state = {"next_index": step}
    checkpoints.save(state_of(step), data, {"saved": step}, scores)


def without_checksums(checkpoint):
    """Rewrites it as an older version left it."""
    (checkpoint / "checksums.json").unlink()
    path = checkpoint / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
