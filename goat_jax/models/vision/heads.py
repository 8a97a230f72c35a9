"""Classification heads of the vision towers."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.core.attention import plain_attention
from goat_jax.models.vision.config import VisionConfig
from goat_jax.nn.dense import Dense
from goat_jax.nn.modules import (
    ACTIVATIONS,
    JoinedProjection,
    LayerNorm,
    LearnedArray,
    Projection,
)
from goat_jax.typing import Array

CLASSIFIER = "classifier"
"""torch name of the layer with an output per class, the same in every head."""

POOLS: dict[str, Callable[[Array, int], Array]] = {
    "class": lambda hidden, before: hidden[:, 0],
    "patches": lambda hidden, before: hidden[:, before:].mean(1),
}
"""Name -> function from hidden states (B, T, D) and the number of tokens before the patches to
vectors (B, D): the class token's, and the mean of the patches."""


class LinearHead(nnx.Module):
    """Linear map of the pooled hidden states."""

    NAMES: ClassVar[dict[str, str]] = {"classifier": CLASSIFIER}

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        width = len(config.pooled) * config.hidden_size
        self.classifier = Dense(width, config.num_labels, rngs=rngs)
        self.config = config

    def __call__(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Returns logits (B, num_labels) of hidden states (B, T, D)."""
        hidden, before = hidden.astype(jnp.float32), self.config.before_patches
        vectors = [POOLS[name](hidden, before) for name in self.config.pooled]
        if self.config.norm_pooled:
            vectors = [norm(vector) for vector in vectors]
        return self.classifier(jnp.concatenate(vectors, -1), ctx.unmasked())


class ZeroShotHead(nnx.Module):
    """Comparison of an image with a text feature per class: exp(logit_scale) * image . text.

    Images are normalized to length 1. The columns of the classifier's kernel (P, num_labels) are
    the text features (`goat_jax.models.vision.text_tower.class_kernel`). They are used without
    further normalization, so the kernel can be trained like any classifier's.
    """

    NAMES: ClassVar[dict[str, str]] = {"logit_scale": "logit_scale", "classifier": CLASSIFIER}
    SHAPE: ClassVar[tuple[int, ...]] = ()
    """torch's shape of the scale."""

    def __init__(self, config: VisionConfig, features: int, *, rngs: nnx.Rngs):
        self.logit_scale = LearnedArray(self.SHAPE, rngs=rngs)
        self.classifier = Dense(features, config.num_labels, use_bias=False, rngs=rngs)

    @abc.abstractmethod
    def image(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Returns image features (B, P), float32, of hidden states (B, T, D)."""

    def __call__(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        """Returns logits (B, num_labels) of hidden states (B, T, D)."""
        image = unit(self.image(hidden.astype(jnp.float32), norm, ctx))
        logits = self.classifier(image, ctx.unmasked())
        scale = jnp.exp(self.logit_scale().astype(jnp.float32))
        return logits * jnp.broadcast_to(scale, logits.shape)


class ProjectedHead(ZeroShotHead):
    """CLIP's zero-shot head: the class token, normalized and projected."""

    NAMES: ClassVar[dict[str, str]] = {**ZeroShotHead.NAMES, "projection": "visual_projection"}

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.projection_dim, rngs=rngs)
        self.projection = Projection(config.hidden_size, config.projection_dim, rngs=rngs)

    def image(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        return self.projection(norm(hidden[:, 0]))


class AttendedHead(ZeroShotHead):
    """SigLIP's zero-shot head: all patches, pooled by attention, and a bias of the logits.

    The logits are those of a yes or no per class, so a sigmoid makes probabilities of them.
    """

    NAMES: ClassVar[dict[str, str]] = {
        **ZeroShotHead.NAMES,
        "logit_bias": "logit_bias",
        "pooling.probe": "vision_model.head.probe",
        "pooling.joined": "vision_model.head.attention",
        "pooling.out": "vision_model.head.attention.out_proj",
        "pooling.norm": "vision_model.head.layernorm",
        "pooling.up": "vision_model.head.mlp.fc1",
        "pooling.down": "vision_model.head.mlp.fc2",
    }
    SHAPE: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.hidden_size, rngs=rngs)
        self.logit_bias = LearnedArray(self.SHAPE, rngs=rngs)
        self.pooling = AttentionPooling(config, rngs=rngs)

    def image(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        return self.pooling(hidden, ctx.unmasked())

    def __call__(self, hidden: Array, norm: LayerNorm, ctx: Context) -> Array:
        logits = super().__call__(hidden, norm, ctx)
        return logits + jnp.broadcast_to(self.logit_bias().astype(jnp.float32), logits.shape)


class AttentionPooling(nnx.Module):
    """Attention of one learned query to all patches, and a feed-forward on what it finds."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.probe = LearnedArray((1, 1, width), rngs=rngs)
        self.joined = JoinedProjection(width, 3, rngs=rngs)
        # torch's attention reads this kernel directly, so PEFT has no adapter for it, either.
        self.out = Projection(width, width, use_bias=True, rngs=rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.up = Dense(width, inner, rngs=rngs)
        self.down = Dense(inner, width, rngs=rngs)
        self.config = config

    def __call__(self, hidden: Array, ctx: Context) -> Array:
        """Returns one vector (B, D) of hidden states (B, T, D)."""
        split = (*hidden.shape[:-1], self.config.num_heads, -1)
        probe = jnp.broadcast_to(
            self.probe().astype(hidden.dtype), (len(hidden), 1, hidden.shape[-1])
        )
        query = self.joined(probe, 0).reshape(len(hidden), 1, *split[2:])
        key, value = (self.joined(hidden, part).reshape(split) for part in (1, 2))
        found = self.out(plain_attention(query, key, value, None).reshape(len(hidden), -1))
        inner = ACTIVATIONS[self.config.activation](self.up(self.norm(found), ctx))
        return found + self.down(inner, ctx)


ZERO_SHOT = "zero_shot"

HEADS: dict[str, Callable[..., LinearHead | ZeroShotHead]] = {
    "linear": LinearHead,
    "projected": ProjectedHead,
    "attended": AttendedHead,
}
"""Name in a family's record -> the head; `NAMES` maps our path in the head to the torch name."""


def unit(vectors: Array) -> Array:
    """Divides vectors (..., P) by their length.

    >>> unit(jnp.array([3.0, 4.0])).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
