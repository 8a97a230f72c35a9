"""Classification heads of the vision towers."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.models.vision.config import VisionConfig
from goat_jax.models.vision.families import FAMILIES
from goat_jax.nn.dense import Dense
from goat_jax.nn.modules import LayerNorm, LearnedArray, Projection
from goat_jax.typing import Array

CLASSIFIER = "classifier"
"""torch name of the layer with an output per class, the same in every head."""


class LinearHead(nnx.Module):
    """Linear map of the pooled hidden states."""

    NAMES: ClassVar[dict[str, str]] = {"classifier": CLASSIFIER}

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        pooled = len(FAMILIES[config.family].pooled)
        self.classifier = Dense(pooled * config.hidden_size, config.num_labels, rngs=rngs)
        self.family = config.family

    def __call__(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Returns logits (B, num_labels) of hidden states (B, T, D)."""
        del norm
        vectors = [pool(hidden.astype(jnp.float32)) for pool in FAMILIES[self.family].pooled]
        return self.classifier(jnp.concatenate(vectors, -1), ctx.unmasked())


class ZeroShotHead(nnx.Module):
    """Comparison of an image with a text feature per class: exp(logit_scale) * image . text.

    Images are normalized to length 1. The columns of the classifier's kernel (P, num_labels) are
    the text features (`goat_jax.models.vision.clip_text.class_kernel`). They are used without
    further normalization, so the kernel can be trained like any classifier's.
    """

    NAMES: ClassVar[dict[str, str]] = {
        "projection": "visual_projection",
        "logit_scale": "logit_scale",
        "classifier": CLASSIFIER,
    }

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        shared = config.projection_dim
        self.projection = Projection(config.hidden_size, shared, rngs=rngs)
        self.logit_scale = LearnedArray((), rngs=rngs)
        self.classifier = Dense(shared, config.num_labels, use_bias=False, rngs=rngs)

    def __call__(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Returns logits (B, num_labels) of hidden states (B, T, D) before the final norm."""
        image = unit(self.projection(norm(hidden[:, 0].astype(jnp.float32))))
        logits = self.classifier(image, ctx.unmasked())
        scale = jnp.exp(self.logit_scale().astype(jnp.float32))
        return logits * jnp.broadcast_to(scale, logits.shape)


ZERO_SHOT = "zero_shot"

HEADS: dict[str, type[LinearHead] | type[ZeroShotHead]] = {
    "linear": LinearHead,
    ZERO_SHOT: ZeroShotHead,
}
"""Heads by name; `NAMES` maps our path in the head to the torch name."""


def unit(vectors: Array) -> Array:
    """Divides vectors (..., P) by their length.

    >>> unit(jnp.array([3.0, 4.0])).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
