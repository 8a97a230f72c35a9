"""Losses, one per task type. Each returns sums and a count, so micro-batches add up exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.core.cross_entropy import chunked_cross_entropy
from goat_jax.data.pipeline.tokenize_words import NO_TAG
from goat_jax.models.decoder.model import Decoder
from goat_jax.typing import Array, Batch


@dataclasses.dataclass(frozen=True)
class LossFn:
    """A task's loss.

    Attributes:
        loss: (model, batch, ctx) -> (sum of losses, extra sums by name, outputs to score).
        count: batch -> the divisor of the sums: the number of examples or tokens.
    """

    loss: Callable[[Any, Batch, Context], tuple[Array, dict[str, Array], Array]]
    count: Callable[[Batch], Array]


TOKENS = ("input_ids", "attention_mask", "token_type_ids")
IMAGES = ("pixel_values",)
"""Names of the batch arrays that a model is called with, in the order of its arguments."""


def _logits(inputs: tuple[str, ...], model: nnx.Module, batch: Batch, ctx: Context) -> Array:
    return model(*(batch[name] for name in inputs), ctx=ctx)


def _classification_loss(
    inputs: tuple[str, ...], model: nnx.Module, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    """Returns the cross entropy, the number of hits and the logits.

    The batch has labels (B,) and weights (B,); padding rows have weight 0.
    """
    return _sums(_logits(inputs, model, batch, ctx), batch["labels"], batch["weights"])


def _sums(logits: Array, labels: Array, weights: Array) -> tuple[Array, dict[str, Array], Array]:
    """Returns the weighted sums of cross entropies and of hits, and the logits."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return (losses * weights).sum(), {"accuracy": (correct * weights).sum()}, logits


def _multi_label_loss(
    inputs: tuple[str, ...], model: nnx.Module, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    """Returns the mean binary cross entropy over a row's labels (B, C), and the logits."""
    logits = _logits(inputs, model, batch, ctx)
    losses = optax.sigmoid_binary_cross_entropy(logits, batch["labels"]).mean(-1)
    return (losses * batch["weights"]).sum(), {}, logits


def _tagging_loss(
    inputs: tuple[str, ...], model: nnx.Module, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    """Returns the cross entropy of the tagged tokens, the number of hits and the logits.

    The batch has labels (B, T), `NO_TAG` for tokens without a tag.
    """
    labels = jnp.maximum(batch["labels"], 0)
    return _sums(_logits(inputs, model, batch, ctx), labels, _tagged(batch))


def _tagged(batch: Batch) -> Array:
    """Returns the weight (B, T) float32 of each token: its row's if it has a tag, else 0."""
    return jnp.where(batch["labels"] == NO_TAG, 0.0, batch["weights"][:, None])


def _regression_loss(
    inputs: tuple[str, ...], model: nnx.Module, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    """Returns the squared error of a model with one output, and that output; labels are floats."""
    logits = _logits(inputs, model, batch, ctx)
    losses = jnp.square(logits[:, 0] - batch["labels"])
    return (losses * batch["weights"]).sum(), {}, logits


def _sum_of_weights(batch: Batch) -> Array:
    return jax.numpy.sum(batch["weights"])


def language_loss(
    model: Decoder, batch: Batch, ctx: Context, attention_mask: Array | None = None
) -> tuple[Array, dict[str, Array], tuple[Array, Array]]:
    """Returns the next-token cross entropy over the tokens that are trained on.

    Rows that are padded on the right need no mask: attention is causal, so no token sees the
    padding behind it, and no loss reads the padding's outputs.

    Args:
        model: the language model.
        batch: input_ids (B, T), loss_mask (B, T), weights (B,), and segments (B, T) if rows hold
            several texts.
        ctx: dropout key and the mask that the balance loss uses.
        attention_mask: (B, T), non-zero where a token is real, for rows that are padded otherwise.

    Returns:
        The sum of losses, the extra sums, and a pair: each position's loss on the following token
        (B, T), 0 where that token is not trained on, and the hidden states (B, T, D).
    """
    hidden = model.hidden(batch["input_ids"], attention_mask, batch.get("segments"), ctx)
    following = jnp.roll(batch["input_ids"], -1, axis=1)
    weights = _next_token_weights(batch)
    rows, tokens = model.layers.batch_parts, model.layers.token_parts
    tokens = 1 if weights.shape[1] % tokens else tokens
    output = model.vocabulary_output(hidden, ctx)
    losses, correct = chunked_cross_entropy(
        output._replace(inputs=tuple(_by_device(x, rows, tokens) for x in output.inputs)),
        _by_device(following, rows, tokens),
        parts=rows * tokens,
        soft_cap=model.config.logit_cap,
    )
    losses, correct = (_by_row(array, weights.shape, rows, tokens) for array in (losses, correct))
    losses = losses * weights
    hits = jnp.where(correct, weights, 0.0).sum()
    return losses.sum(), {"token_accuracy": hits}, (losses, hidden)


def _by_device(array: Array, rows: int, tokens: int) -> Array:
    """Flattens (B, T, ...) to (B T, ...), so that what one device of a mesh has is contiguous.

    Args:
        array: (B, T, ...).
        rows: the number of parts that the mesh splits the rows into.
        tokens: the number of parts that it splits the tokens into.
    """
    b, t, *rest = array.shape
    parts = array.reshape(rows, b // rows, tokens, t // tokens, *rest)
    return parts.swapaxes(1, 2).reshape(b * t, *rest)


def _by_row(array: Array, shape: tuple[int, ...], rows: int, tokens: int) -> Array:
    """Inverts `_by_device` for an array (B T,); `shape` is (B, T)."""
    b, t = shape
    return array.reshape(rows, tokens, b // rows, t // tokens).swapaxes(1, 2).reshape(b, t)


def _next_token_weights(batch: Batch) -> Array:
    """Returns the weight (B, T) float32 of each position's next token.

    It is the row's weight if the next token is trained on and belongs to the same text, else 0.
    """
    loss_mask = batch["loss_mask"] != 0
    if "segments" in batch:
        segments = batch["segments"]
        loss_mask &= segments == jnp.roll(segments, 1, axis=1)
    rows = jnp.broadcast_to(batch["weights"][:, None], loss_mask.shape)
    # No position precedes the first token, and the roll would move its weight to the last one.
    weights = jnp.where(loss_mask, rows, 0.0).at[:, 0].set(0.0)
    return jnp.roll(weights, -1, axis=1)


def _language_loss_by_row(
    model: Decoder, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    loss, sums, (losses, _) = language_loss(model, batch, ctx)
    return loss, sums, losses.sum(axis=1)


def _tokens_in_loss(batch: Batch) -> Array:
    return jnp.maximum(_next_token_weights(batch).sum(), 1.0)


LANGUAGE = LossFn(_language_loss_by_row, _tokens_in_loss)
CLASSIFICATION = LossFn(partial(_classification_loss, TOKENS), _sum_of_weights)
REGRESSION = LossFn(partial(_regression_loss, TOKENS), _sum_of_weights)
MULTI_LABEL = LossFn(partial(_multi_label_loss, TOKENS), _sum_of_weights)
TAGGING = LossFn(
    partial(_tagging_loss, TOKENS), lambda batch: jnp.maximum(_tagged(batch).sum(), 1.0)
)
IMAGE_CLASSIFICATION = LossFn(partial(_classification_loss, IMAGES), _sum_of_weights)
