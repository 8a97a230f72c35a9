"""What is minimised: per family of tasks, a loss as sums over examples, so that parts add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from goat_jax.adapters.context import Context
from goat_jax.typing import Array, Batch


@dataclasses.dataclass(frozen=True)
class Objective:
    """A task's loss.

    Attributes:
        loss: (model, batch, ctx) -> (sum of losses, extra sums by name, outputs to score).
        count: batch -> what the sums are divided by (examples, or tokens).
    """

    loss: Callable[[Any, Batch, Context], tuple[Array, dict[str, Array], Array]]
    count: Callable[[Batch], Array]


def _logits(model: Any, batch: Batch, ctx: Context) -> Array:
    return model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], ctx=ctx)


def _classification_loss(
    model: Any, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    """Cross entropy; batch has labels (B,) and weights (B,), 0 for rows that only fill up."""
    logits = _logits(model, batch, ctx)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    correct = (logits.argmax(-1) == batch["labels"]).astype(jnp.float32)
    weights = batch["weights"]
    return (losses * weights).sum(), {"accuracy": (correct * weights).sum()}, logits


def _regression_loss(
    model: Any, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    """Squared error of a model with one output; labels are floats."""
    logits = _logits(model, batch, ctx)
    losses = jnp.square(logits[:, 0] - batch["labels"])
    return (losses * batch["weights"]).sum(), {}, logits


def _sum_of_weights(batch: Batch) -> Array:
    return jax.numpy.sum(batch["weights"])


CLASSIFICATION = Objective(_classification_loss, _sum_of_weights)
REGRESSION = Objective(_regression_loss, _sum_of_weights)
